//! A driver that leads its group, with its pending calls.

use request::Refusal;

use super::*;

pub(super) const OWN: Gid = Gid(1);
pub(super) const SOURCE: Gid = Gid(2);
pub(super) const CONTROLLER: ClusterId = ClusterId(0xc0);
pub(super) const SHARD: ShardId = ShardId(4);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A driver that leads its group. Its ownership never changes by itself.
pub(super) struct Stage {
    pub(super) driver: Driver,
    pub(super) ownership: Arc<Ownership>,
    pub(super) now: u64,
    /// Pending calls: id, address, request.
    pub(super) calls: Vec<(CallId, String, Request)>,
    pub(super) proposals: Vec<(CallId, Step)>,
    pub(super) failures: Vec<String>,
}

pub(super) fn addresses(name: &str) -> Vec<String> {
    (1..=3)
        .map(|number| format!("{name}-{number}:7000"))
        .collect()
}

pub(super) fn options() -> DriverOptions {
    DriverOptions {
        controllers: addresses("ctrl"),
        first_node: 0,
        call_timeout_ms: 1_000,
        propose_timeout_ms: 5_000,
        news_wait_ms: 2_000,
    }
}

/// The two groups.
pub(super) fn groups() -> BTreeMap<Gid, Group> {
    [
        (OWN, addresses("g1").into()),
        (SOURCE, addresses("g2").into()),
    ]
    .into()
}

/// The ownership of a group whose shard is on its way.
pub(super) fn pulling() -> Ownership {
    let shard = Shard::new(
        ShardState::Pulling {
            config: ConfigNum(3),
            source: SOURCE,
            after: Cursor::default(),
            bytes: 0,
        },
        LogTime(0),
    );
    Ownership {
        gid: OWN,
        controller: Some(CONTROLLER),
        config: ConfigNum(3),
        shards: [(SHARD, Arc::new(shard))].into_iter().collect(),
        groups: Arc::new(groups()),
        ..Ownership::default()
    }
}

/// The ownership of a group that waits for the confirmation of a delete, for each of these shards.
pub(super) fn deleting(shards: &[u32]) -> Ownership {
    let pending = shards
        .iter()
        .map(|it| ((ShardId(*it), ConfigNum(3)), SOURCE));
    Ownership {
        shards: crate::ShardMap::default(),
        pending_deletes: Arc::new(pending.collect()),
        ..pulling()
    }
}

impl Stage {
    pub(super) fn new(ownership: Ownership) -> Self {
        Self::with(
            Driver::new(OWN, 10, MoverOptions::default(), options()),
            ownership,
        )
    }

    pub(super) fn with(driver: Driver, ownership: Ownership) -> Self {
        let mut stage = Self {
            driver,
            ownership: Arc::new(ownership),
            now: 1_000,
            calls: Vec::new(),
            proposals: Vec::new(),
            failures: Vec::new(),
        };
        stage.poll();
        stage
    }

    pub(super) fn poll(&mut self) {
        for effect in self.driver.poll(self.now, Some(&self.ownership)) {
            match effect {
                Effect::Call {
                    id,
                    address,
                    request,
                    ..
                } => self.calls.push((id, address.to_string(), request)),
                Effect::Propose { id, step, .. } => self.proposals.push((id, step)),
                Effect::Failed(why) => self.failures.push(why),
            }
        }
    }

    /// Lets the time pass.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(due) = self.driver.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.poll();
        }
        self.now = end;
    }

    /// Takes the pending call that `wanted` accepts, and its node's address.
    pub(super) fn take(&mut self, wanted: impl Fn(&Request) -> bool) -> (CallId, String) {
        let at = self.calls.iter().position(|(_, _, it)| wanted(it));
        let at = at.unwrap_or_else(|| panic!("no such call in {:?}", self.calls));
        let (id, address, _) = self.calls.remove(at);
        (id, address)
    }

    pub(super) fn answer(&mut self, id: CallId, answer: Answer) {
        self.driver.handle_answer(id, Ok(answer));
        self.poll();
    }

    pub(super) fn refuse(&mut self, id: CallId, refusal: Refusal) {
        let message = "said so".to_owned();
        self.driver
            .handle_answer(id, Err(Refused { refusal, message }));
        self.poll();
    }

    /// Takes the pending request for a part of a copy.
    pub(super) fn take_copy_request(&mut self) -> Option<(CallId, CopyRequest)> {
        let is_copy = |(_, _, it): &(CallId, String, Request)| matches!(it, Request::Copy { .. });
        let at = self.calls.iter().position(is_copy)?;
        match self.calls.remove(at) {
            (id, _, Request::Copy { request, .. }) => Some((id, request)),
            _ => None,
        }
    }

    /// Answers with a part after which the generation `next` follows, and takes the part into the ownership.
    pub(super) fn takes_part(&mut self, id: CallId, request: &CopyRequest, next: u64) {
        let (shard, copy) = (request.shard, request.copy);
        let cursor = CopyCursor::Page {
            generation: next,
            after: Position::default(),
        };
        let part = Part {
            shard,
            copy,
            after: request.after.clone(),
            changes: Vec::new(),
            next: PartNext::At(cursor.clone()),
        };
        self.answer(id, Answer::Part(part));
        let (proposal, step) = self.proposals.pop().unwrap();
        assert!(matches!(step, Step::Copy(CopyStep::Take(_))), "{step:?}");
        let mut ownership = copying();
        let shard = ownership.shards.get(&shard).unwrap();
        let mut shard = Shard::clone(shard);
        if let ShardState::Copying { cursor: at, .. } = &mut shard.state {
            *at = cursor;
        }
        ownership.shards.insert(SHARD, Arc::new(shard));
        self.ownership = Arc::new(ownership);
        self.answer(proposal, Answer::Stepped);
    }

    pub(super) fn confirms(&self, shard: u32) -> bool {
        let config = ConfigNum(3);
        let shard = ShardId(shard);
        let confirmed = Step::Deleted { shard, config };
        self.proposals.iter().any(|(_, step)| *step == confirmed)
    }
}

pub(super) fn is_pull(request: &Request) -> bool {
    matches!(request, Request::Pull { .. })
}

pub(super) fn is_delete(request: &Request) -> bool {
    matches!(request, Request::Delete { .. })
}

pub(super) fn is_delete_of(number: u32) -> impl Fn(&Request) -> bool {
    move |it| matches!(it, Request::Delete { shard, .. } if shard.0 == number)
}

#[cfg(feature = "bugs")]
pub(super) fn is_report(request: &Request) -> bool {
    matches!(request, Request::Report { .. })
}

pub(super) fn is_fetch(request: &Request) -> bool {
    matches!(request, Request::Configs { .. })
}

pub(super) fn not_leader(hint: Option<&str>) -> Refusal {
    Refusal::NotLeader {
        hint: hint.map(Arc::from),
    }
}

pub(super) fn last_chunk() -> Answer {
    let chunk = Chunk {
        shard: SHARD,
        config: ConfigNum(3),
        after: Cursor::default(),
        pairs: Vec::new(),
        sessions: Vec::new(),
        rows: Vec::new(),
        next: Next::Done {
            clock: crate::SessionClock {
                horizon: LogTime(1),
                time: LogTime(1),
            },
            ttl_ms: 1_000,
        },
    };
    let shard_bytes = 0;
    Answer::Chunk { chunk, shard_bytes }
}
