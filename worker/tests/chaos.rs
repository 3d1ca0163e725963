//! Random assignments, deaths, restarts of the agent, losses of the manager, reboots: whatever the order, in the end the
//! node runs exactly what is wanted, nothing started twice, and the manager knows it all. A failing seed replays.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep_proto::v1::{TaskState, WantedState};
use skep_worker::AgentHandle;
use support::*;

const SEEDS: u64 = 6;
const STEPS: usize = 60;

struct Chaos {
    random: StdRng,
    manager: TestManager,
    server: Option<Server>,
    addr: std::net::SocketAddr,
    node: TestNode,
    agent: Option<AgentHandle>,
    wanted: BTreeMap<u128, WantedState>,
    next: u128,
    boots: usize,
}

impl Chaos {
    async fn new(seed: u64) -> Self {
        let manager = TestManager::new();
        manager.state().period_ms = 50;
        let server = manager.serve("127.0.0.1:0");
        let node = TestNode::new();
        let (agent, _events) = node.start(&[server.addr]).await;
        let env = ["SIM_PREPARE_MS=2", "SIM_START_MS=1", "SIM_STOP_MS=2"];
        manager.assign(vec![revision(1, &env)], vec![]);
        Self {
            random: StdRng::seed_from_u64(seed),
            addr: server.addr,
            server: Some(server),
            manager,
            node,
            agent: Some(agent),
            wanted: BTreeMap::new(),
            next: 1,
            boots: 1,
        }
    }

    fn any_task(&mut self) -> Option<u128> {
        let at = self.random.gen_range(0..self.wanted.len().max(1));
        self.wanted.keys().nth(at).copied()
    }

    async fn start_agent(&mut self) {
        self.node.boot_id = format!("boot-{}", self.boots);
        self.agent = Some(self.node.start(&[self.addr]).await.0);
    }

    async fn step(&mut self) {
        match self.random.gen_range(0..100) {
            0..35 => {
                let wanted = if self.random.gen_bool(0.3) { WantedState::Ready } else { WantedState::Running };
                self.wanted.insert(self.next, wanted);
                self.manager.assign(vec![task(self.next, 1, wanted)], vec![]);
                self.next += 1;
            }
            35..60 => {
                let Some(id) = self.any_task() else { return };
                let forward = match self.wanted[&id] {
                    WantedState::Ready => WantedState::Running,
                    WantedState::Running => WantedState::Draining,
                    _ => WantedState::Shutdown,
                };
                self.wanted.insert(id, forward);
                self.manager.assign(vec![task(id, 1, forward)], vec![]);
            }
            60..68 => {
                let Some(id) = self.any_task() else { return };
                self.wanted.remove(&id);
                self.manager.assign(vec![], vec![removed(id)]);
            }
            68..76 => {
                let Some(id) = self.any_task() else { return };
                self.node.world.end(task_id(id), "main", self.random.gen_range(0..3), false);
            }
            76..84 => {
                if let Some(agent) = self.agent.take() {
                    agent.shutdown().await;
                }
                if self.random.gen_bool(0.2) {
                    self.node.world.power_off();
                    self.boots += 1;
                }
                self.start_agent().await;
            }
            84..90 => {
                if self.server.take().is_none() {
                    self.server = Some(self.manager.serve(&self.addr.to_string()));
                } else if self.random.gen_bool(0.3) {
                    self.manager.forget_sessions();
                }
            }
            _ => tokio::time::sleep(std::time::Duration::from_millis(self.random.gen_range(0..15))).await,
        }
    }

    /// Whether what is told, what runs and what is wanted agree.
    fn settled(&self) -> bool {
        let (running, state) = (self.node.world.running(), self.manager.state());
        let runs = |id: u128| running.contains_key(&(task_id(id), "main".to_owned()));
        let all_as_wanted = self.wanted.iter().all(|(&id, wanted)| {
            let Some(told) = state.statuses.get(&task_id(id)) else { return false };
            match (told.state(), wanted) {
                (TaskState::Ready, WantedState::Ready) => !runs(id),
                (TaskState::Running, WantedState::Running | WantedState::Draining) => runs(id),
                // Ended: asked to, by itself, or by a reboot.
                (ended, _) => ended.is_terminal() && !runs(id),
            }
        });
        let nothing_else = running.keys().all(|(id, _)| self.wanted.contains_key(&id.value()));
        all_as_wanted && nothing_else
    }
}

#[tokio::test]
async fn in_the_end_the_node_runs_what_is_wanted() {
    for seed in 0..SEEDS {
        let mut chaos = Chaos::new(seed).await;
        for _ in 0..STEPS {
            chaos.step().await;
        }
        if chaos.server.is_none() {
            chaos.server = Some(chaos.manager.serve(&chaos.addr.to_string()));
        }
        until(&format!("seed {seed} settles"), || chaos.settled()).await;
        assert!(chaos.node.world.starts().values().all(|count| *count == 1), "seed {seed}: started once");
        let leftovers = chaos.node.world.leftovers();
        assert!(leftovers.iter().all(|id| chaos.wanted.contains_key(&id.value())), "seed {seed}: leftovers");
        if let Some(agent) = chaos.agent.take() {
            until("all told", || agent.all_acknowledged()).await;
            agent.shutdown().await;
        }
    }
}
