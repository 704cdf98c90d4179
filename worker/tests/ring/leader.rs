//! A group's leader that speaks Kafka's protocol by hand, so that it can do what no client does: think about who gets
//! what for as long as it likes. Meanwhile the broker refuses everybody's offset commits, which otherwise happens for a
//! few milliseconds of each rebalance.

use std::io::{Read, Write};
use std::net::TcpStream;

const JOIN_GROUP: i16 = 11;
const SYNC_GROUP: i16 = 14;
/// Longer than a test: no heartbeats are sent.
const SESSION_MS: i32 = 120_000;

/// A member that joined first, and so leads. Blocks.
pub(crate) struct Leader {
    stream: TcpStream,
    group: String,
    member: String,
}

/// A generation whose assignment is not given out yet.
pub(crate) struct Thinking {
    generation: i32,
    /// Members and the topics that they want.
    members: Vec<(String, Vec<String>)>,
}

impl Leader {
    /// The first member of a group that nobody has joined.
    pub(crate) fn new(bootstrap: &str, group: &str) -> Leader {
        let mut leader = Leader {
            stream: TcpStream::connect(bootstrap).unwrap(),
            group: group.to_owned(),
            member: String::new(),
        };
        let alone = leader.rebalance();
        leader.assign(&alone, 0);
        leader
    }

    /// Has everybody join anew. Comes back when all have, and the broker waits for [`Leader::assign`].
    pub(crate) fn rebalance(&mut self) -> Thinking {
        let mut request = Bytes::default();
        request.text(&self.group);
        request.i32(SESSION_MS);
        request.i32(SESSION_MS);
        request.text(&self.member);
        request.text("consumer");
        request.i32(1);
        request.text("cooperative-sticky");
        // Version 0, no topics, no data.
        request.bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let answer = self.ask(JOIN_GROUP, 3, &request);
        let mut answer = Reader(&answer);
        assert_eq!((answer.i32(), answer.i16()), (0, 0), "throttle, error");
        let generation = answer.i32();
        assert_eq!(answer.text(), "cooperative-sticky");
        let (leader, member) = (answer.text(), answer.text());
        assert_eq!(leader, member, "somebody else leads");
        self.member = member;
        let mut members = Vec::new();
        for _ in 0..answer.i32() {
            let member = answer.text();
            let mut wants = Reader(answer.bytes());
            wants.i16();
            let topics = (0..wants.i32()).map(|_| wants.text()).collect();
            members.push((member, topics));
        }
        Thinking {
            generation,
            members,
        }
    }

    /// Rebalances until so many have joined.
    pub(crate) fn gather(&mut self, members: usize, partitions: i32) {
        loop {
            let thinking = self.rebalance();
            self.assign(&thinking, partitions);
            if thinking.members.len() == members {
                return;
            }
        }
    }

    /// Gives each member all partitions of the topics that it wants.
    pub(crate) fn assign(&mut self, thinking: &Thinking, partitions: i32) {
        let mut request = Bytes::default();
        request.text(&self.group);
        request.i32(thinking.generation);
        request.text(&self.member);
        request.i32(i32::try_from(thinking.members.len()).unwrap());
        for (member, topics) in &thinking.members {
            let mut assignment = Bytes::default();
            assignment.i16(0);
            assignment.i32(i32::try_from(topics.len()).unwrap());
            for topic in topics {
                assignment.text(topic);
                assignment.i32(partitions);
                (0..partitions).for_each(|partition| assignment.i32(partition));
            }
            assignment.i32(0);
            request.text(member);
            request.bytes(&assignment.0);
        }
        eprintln!("DBG sync");
        let answer = self.ask(SYNC_GROUP, 1, &request);
        let mut answer = Reader(&answer);
        assert_eq!((answer.i32(), answer.i16()), (0, 0), "throttle, error");
    }

    fn ask(&mut self, api: i16, version: i16, request: &Bytes) -> Vec<u8> {
        let mut message = Bytes::default();
        message.i16(api);
        message.i16(version);
        message.i32(7);
        message.text("leader");
        message.0.extend_from_slice(&request.0);
        let mut framed = Bytes::default();
        framed.bytes(&message.0);
        self.stream.write_all(&framed.0).unwrap();
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
        self.stream.read_exact(&mut answer).unwrap();
        // Behind the number of the question.
        answer.split_off(4)
    }
}

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn i16(&mut self, value: i16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn text(&mut self, value: &str) {
        self.i16(i16::try_from(value.len()).unwrap());
        self.0.extend_from_slice(value.as_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.i32(i32::try_from(value.len()).unwrap());
        self.0.extend_from_slice(value);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let length = usize::try_from(self.i16()).unwrap();
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.i32()).unwrap();
        self.take(length)
    }
}
