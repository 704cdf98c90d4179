//! What became of each event, compared with what should have become of it.
//!
//! The four groups of checks: what was acknowledged is stored or a dead letter, in exactly one place; each row is on its
//! user's shard, and every state is that of an independent model; versions follow offsets; and each partition's records
//! add up, with offset <= fence <= end.

mod check;
mod feed;
pub mod model;
mod read;

use std::collections::BTreeMap;

use uuid::Uuid;

pub use read::Held;

use crate::load::Sent;
use crate::world::World;

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// An event that should be there is not.
    Lost,
    /// One is there more than once.
    Twice,
    /// One was applied at another place of its user's sequence.
    OutOfOrder,
    /// A state, an outbox row, a fence or a sum that does not fit.
    Other,
}

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What.
    pub wrong: Wrong,
    /// Whose.
    pub user: Option<Uuid>,
    /// In words.
    pub sentence: String,
}

/// What the oracle says.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Records in the topics.
    pub events: usize,
    /// How many of each fate, for the reader.
    pub fates: BTreeMap<String, usize>,
    /// Dead letters that were published again after a crash, which is allowed.
    pub letters_again: usize,
    /// Records that are in a topic more often than they were sent, which is allowed.
    pub records_again: usize,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// What the log and the servers have of the first users with a finding.
    pub histories: Vec<String>,
}

/// What the model must know of a scenario.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// The databases refuse events with the mark.
    pub refuses: bool,
    /// A user's records lie in more than one partition of a topic, so nobody promises their order.
    pub unordered: bool,
    /// What comes too early waits in the database.
    pub parks: bool,
    /// A relay has emptied the outboxes into the feed.
    pub relayed: bool,
}

impl Verdict {
    /// How often something is wrong.
    #[must_use]
    pub fn count(&self, wrong: Wrong) -> usize {
        self.findings.iter().filter(|it| it.wrong == wrong).count()
    }

    pub(crate) fn add(&mut self, wrong: Wrong, user: Option<Uuid>, sentence: String) {
        self.findings.push(Finding {
            wrong,
            user,
            sentence,
        });
    }

    /// The first findings and histories, in lines.
    #[must_use]
    pub fn describe(&self, lines: usize) -> String {
        let mut text = String::new();
        for finding in self.findings.iter().take(lines) {
            let user = finding
                .user
                .map_or_else(String::new, |user| format!(" {user}"));
            text.push_str(&format!(
                "  {:?}{user}: {}\n",
                finding.wrong, finding.sentence
            ));
        }
        if self.findings.len() > lines {
            text.push_str(&format!("  ... and {} more\n", self.findings.len() - lines));
        }
        text + &self.histories.concat()
    }
}

/// Reads everything and judges it. All must be quiet.
///
/// # Errors
/// A server that does not answer.
pub async fn judge(world: &World<'_>, sent: &[Sent], rules: Rules) -> anyhow::Result<Verdict> {
    let held = Held::read(world).await?;
    let rules = Rules {
        parks: world.parks,
        ..rules
    };
    let (committed, fences, ends) = (world.committed()?, world.fences().await?, world.ends()?);
    Ok(check::Check::new(world, &held, rules).run(sent, &committed, &fences, &ends))
}
