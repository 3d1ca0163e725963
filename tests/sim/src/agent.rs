//! A node's agent, as far as managers are concerned: it joins, and learns from any manager what its certificate says.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::gate::{self, Answer, Question, Told};
use crate::wire;
use crate::world::World;

/// Pause before a question is asked again.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// How often it hears what its certificate says. A session says it at once.
const RENEW: Duration = Duration::from_millis(900);
/// How long one question may take.
const WAIT: Duration = Duration::from_secs(4);

/// See the module.
pub(crate) struct Agent {
    world: Rc<World>,
    host: u64,
    rng: RefCell<StdRng>,
}

impl Agent {
    pub(crate) fn new(world: Rc<World>, host: u64) -> Self {
        let rng = StdRng::seed_from_u64(world.seed ^ world.now().rotate_left(20) ^ host.rotate_left(50));
        Self { world, host, rng: RefCell::new(rng) }
    }

    fn node(&self) -> u128 {
        self.world.seat(self.host, |seat| seat.node).value()
    }

    async fn ask(&self, question: &Question) -> (u64, Option<Answer>) {
        let manager = self.rng.borrow_mut().gen_range(1..=self.world.managers);
        (manager, gate::ask(&wire::host(manager), question, WAIT).await.ok())
    }

    /// Returns when the node is to be a manager, with a manager that said so.
    pub(crate) async fn become_manager(&self) -> u64 {
        let mut joined = false;
        loop {
            if !joined {
                joined = matches!(self.ask(&Question::Join(self.node())).await.1, Some(Answer::Done));
            }
            match self.ask(&Question::Certificate(self.node())).await {
                (manager, Some(Answer::Certificate(Told::Manager))) if manager != self.host => return manager,
                (_, Some(Answer::Certificate(Told::Denied))) => {
                    self.world.seat(self.host, |seat| seat.leave(self.host));
                    joined = false;
                }
                (_, Some(Answer::Certificate(Told::None))) => joined = false,
                _ => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns when the node is to be no manager any more.
    pub(crate) async fn is_no_manager(&self) -> Told {
        loop {
            let pause = self.rng.borrow_mut().gen_range(RENEW / 2..RENEW * 3 / 2);
            tokio::time::sleep(pause).await;
            // The first manager begins before there is a swarm.
            if let (_, Some(Answer::Certificate(told @ (Told::Worker | Told::Denied)))) =
                self.ask(&Question::Certificate(self.node())).await
            {
                return told;
            }
        }
    }
}
