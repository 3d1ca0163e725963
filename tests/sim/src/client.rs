//! Clients: they read, append to lists, create, remove and repeat, at any manager, with request ids, and retry. What they
//! learn goes to the history; what they cannot know stays unknown.

use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use skep_core::change::{Change, Group, Op, Transaction};
use skep_core::codec;
use skep_core::object::{ImageName, Meta};
use skep_proto::id::RequestId;

use crate::gate::{self, Answer, Lost, Question, Stored};
use crate::history::{Append, Once, Outcome, Read, Span, words};
use crate::wire;
use crate::world::{Phase, World};

/// Names that all clients append to.
const LISTS: [&str; 4] = ["list-a", "list-b", "list-c", "list-d"];
/// Pause between two things that a client does.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(5)..Duration::from_millis(120);
/// Pause before a write is tried again.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(5)..Duration::from_millis(300);
/// How long a client waits for one answer.
const WAIT: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_millis(4000);
const READ_WAIT: Duration = Duration::from_secs(4);

/// One client.
pub(crate) struct Client {
    world: Rc<World>,
    rng: StdRng,
    number: u64,
    count: u64,
    manager: u64,
}

/// What a list, or a name, is stored as.
fn name(name: &str, content: String) -> Op {
    Op::PutImageName(ImageName { name: name.to_owned(), meta: Meta::default(), digest: content, platforms: Vec::new() })
}

/// A write, ready to be sent and sent again.
struct Write {
    question: Question,
    object: Vec<u8>,
    request: u128,
}

impl Write {
    fn new(request: RequestId, object: &str, change: Change) -> Self {
        let object = object.as_bytes().to_vec();
        let groups = vec![Group(vec![change])];
        let transaction =
            Transaction { request: Some(request), groups, object_id: object.clone(), ..Transaction::default() };
        let request = request.value();
        Self { question: Question::Write(codec::encode_entry(&[transaction])), object, request }
    }
}

/// A list that may be there, and with which version.
fn find<'a>(names: &'a [Stored], name: &str) -> Option<&'a Stored> {
    names.iter().find(|stored| stored.0 == name)
}

impl Client {
    pub(crate) fn new(world: Rc<World>, number: u64) -> Self {
        let rng = StdRng::seed_from_u64(world.seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { world, rng, number, count: 0, manager: 1 }
    }

    /// Works from the storm's begin until the managers are to come to rest.
    pub(crate) async fn run(mut self) {
        while self.world.phase() == Phase::Forming {
            tokio::time::sleep(PAUSE.end).await;
        }
        while self.world.phase() == Phase::Storm {
            match self.rng.gen_range(0..10) {
                0..6 => self.append().await,
                6..8 => {
                    self.read().await;
                }
                _ => self.once().await,
            }
            let pause = self.rng.gen_range(PAUSE);
            tokio::time::sleep(pause).await;
        }
    }

    /// At the end every manager must take a write.
    pub(crate) async fn probe(&mut self, manager: u64) -> Result<(), String> {
        let word = self.word();
        let write = Write::new(self.request(), &word, Change::create(name(&word, String::new())));
        match gate::ask(&wire::host(manager), &write.question, Duration::from_secs(10)).await {
            Ok(Answer::Written { .. }) => Ok(()),
            other => Err(format!("manager {manager} does not take a write after everything was healed: {other:?}")),
        }
    }

    fn word(&mut self) -> String {
        self.count += 1;
        format!("c{}-{}", self.number, self.count)
    }

    fn request(&mut self) -> RequestId {
        RequestId::new(self.rng.r#gen())
    }

    fn choose_manager(&mut self) -> u64 {
        if self.rng.gen_bool(0.5) {
            self.manager = self.rng.gen_range(1..=self.world.managers);
        }
        self.manager
    }

    fn is_recovered(&self) -> bool {
        self.world.history.borrow().recovery.is_some()
    }

    async fn read(&mut self) -> Option<Vec<Stored>> {
        let manager = self.choose_manager();
        let from = self.world.now();
        let answer = gate::ask(&wire::host(manager), &Question::Read, READ_WAIT).await;
        let Ok(Answer::Names { version, names }) = answer else { return None };
        let span = Span { from, to: self.world.now() };
        self.world.note(|| format!("client {} read version {version} at manager {manager}", self.number));
        let lists = names.iter().filter(|it| LISTS.contains(&&*it.0));
        let lists = lists.map(|(name, _, content)| (name.clone(), words(content))).collect();
        self.world.history.borrow_mut().reads.push(Read { manager, span, lists });
        Some(names)
    }

    async fn append(&mut self) {
        let Some(names) = self.read().await else { return };
        let list = LISTS[self.rng.gen_range(0..LISTS.len())];
        let word = self.word();
        let change = match find(&names, list) {
            Some((_, version, content)) => Change::update(*version, name(list, format!("{content} {word}"))),
            None => Change::create(name(list, word.clone())),
        };
        let write = Write::new(self.request(), &word, change);
        let from = self.world.now();
        let (outcome, _) = self.insist(&write).await;
        let span = Span { from, to: self.world.now() };
        self.world.note(|| format!("client {} appended {word} to {list}: {outcome:?}", self.number));
        self.world.history.borrow_mut().appends.push(Append { list: list.to_owned(), word, span, outcome });
    }

    async fn once(&mut self) {
        let name_of = self.word();
        let create = Write::new(self.request(), &name_of, Change::create(name(&name_of, String::new())));
        let remove = Write::new(self.request(), &name_of, Change::any(Op::RemoveImageName(name_of.clone())));
        let (created, mut same) = self.insist(&create).await;
        let created_at = self.world.now();
        let (mut removed, mut repeated) = (None, None);
        if matches!(created, Outcome::Done(_)) {
            removed = Some(self.insist(&remove).await.0);
        }
        if matches!(removed, Some(Outcome::Done(_))) {
            let again = self.insist(&create).await;
            same &= again.1;
            repeated = Some(again.0);
        }
        self.world.note(|| {
            format!("client {} created {name_of}: {created:?}, removed: {removed:?}, again: {repeated:?}", self.number)
        });
        let (request, ended_at) = (create.request, self.world.now());
        let once =
            Once { name: name_of, request, created, created_at, ended_at, removed, repeated, other_object: !same };
        self.world.history.borrow_mut().onces.push(once);
    }

    /// Tries until the result is known, or patience ends. Also answers whether the object named is the right one.
    async fn insist(&mut self, write: &Write) -> (Outcome, bool) {
        let mut may_have_happened = false;
        let recovered = self.is_recovered();
        for _ in 0..self.rng.gen_range(1..8) {
            if self.is_recovered() != recovered {
                // The versions that it goes by are of the lost managers.
                break;
            }
            let (manager, wait) = (self.choose_manager(), self.rng.gen_range(WAIT));
            let asked = self.world.now();
            let answer = gate::ask(&wire::host(manager), &write.question, wait).await;
            self.world.note(|| {
                let object = String::from_utf8_lossy(&write.object);
                format!("client {} asked manager {manager} at {asked} us to write {object}: {answer:?}", self.number)
            });
            match answer {
                Ok(Answer::Written { version, object_id }) => {
                    return (Outcome::Done(version), object_id == write.object);
                }
                // The state has moved on, for every later try, too.
                Ok(Answer::Refused(_)) => return (Outcome::Never, true),
                Ok(Answer::NoLeader | Answer::Stopped(_)) | Err(Lost::NeverSent) => {}
                Ok(_) | Err(Lost::OnTheWay) => may_have_happened = true,
            }
            let pause = self.rng.gen_range(RETRY);
            tokio::time::sleep(pause).await;
        }
        (if may_have_happened { Outcome::Unknown } else { Outcome::Never }, true)
    }
}
