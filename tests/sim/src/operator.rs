//! The operator: promotes, demotes and removes nodes by the managers' API, as the plan has it, at any manager that answers.
//! When everything is healed, every host's node is to be a manager again.

use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::gate::{self, Answer, Lost, Question};
use crate::history::Micros;
use crate::wire;
use crate::world::{Order, Phase, World};

/// Pause between two looks at what there is to do, and before an order is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one call may take: a removal waits until the node is out of Raft.
const WAIT: Duration = Duration::from_secs(20);
/// For so long an order may still take effect whose answer was lost, in microseconds: a manager waits until the node is out
/// of Raft, and then writes.
const LATE: Micros = 30_000_000;
/// How often an order is tried while the storm lasts.
const TRIES: usize = 6;

/// Works until the simulation ends.
pub(crate) async fn run(world: Rc<World>) -> turmoil::Result {
    let mut count = 0;
    let mut healed = false;
    loop {
        let next = world.orders.borrow_mut().pop_front();
        if let Some(order) = next {
            count += 1;
            tokio::task::spawn_local(carry_out(Rc::clone(&world), order, count, TRIES));
            continue;
        }
        if world.phase() == Phase::Rest && !healed {
            healed = true;
            tokio::task::spawn_local(promote_all(Rc::clone(&world)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Until nobody is left who was demoted: earlier orders may still take effect.
async fn promote_all(world: Rc<World>) {
    let mut count = 1000;
    loop {
        let demoted = world.demoted.borrow().clone();
        for host in demoted {
            count += 1;
            carry_out(Rc::clone(&world), Order::Promote(host), count, 1).await;
        }
        tokio::time::sleep(PAUSE * 5).await;
    }
}

async fn carry_out(world: Rc<World>, order: Order, number: u64, tries: usize) {
    let (Order::Promote(host) | Order::Demote(host) | Order::Remove(host)) = order;
    world.orders_open.set(world.orders_open.get() + 1);
    let done = insist(&world, order, host, number, tries).await;
    if order != Order::Promote(host) {
        // Whether or not it is done: nobody may have been told.
        world.demoted.borrow_mut().insert(host);
    } else if done {
        world.demoted.borrow_mut().remove(&host);
    }
    world.orders_open.set(world.orders_open.get() - 1);
}

/// Says whether it is done.
async fn insist(world: &World, order: Order, host: u64, number: u64, tries: usize) -> bool {
    let mut rng = StdRng::seed_from_u64(world.seed ^ number.wrapping_mul(0x1656_67b1_9e37_79f9));
    for _ in 0..tries {
        let node = world.seat(host, |seat| seat.node).value();
        let question = match order {
            Order::Promote(_) => Question::SetRole(node, true),
            Order::Demote(_) => Question::SetRole(node, false),
            Order::Remove(_) => Question::Remove(node),
        };
        let manager = rng.gen_range(1..=world.managers);
        let answer = gate::ask(&wire::host(manager), &question, WAIT).await;
        world.note(|| format!("operator at manager {manager}: {order:?}: {answer:?}"));
        match answer {
            Ok(Answer::Done) => return true,
            // The state does not allow it: the last manager, a lost quorum, a node that is not known.
            Ok(Answer::Refused(_)) if order != Order::Promote(host) => return false,
            Err(Lost::OnTheWay) => world.unsettled_until.set(world.now() + LATE),
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
    false
}
