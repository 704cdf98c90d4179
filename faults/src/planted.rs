//! The twelve defects, and the scenario that has to find each.

use shardlane_sql::mutants::Mutant;

use crate::lab::Lab;
use crate::oracle::Wrong;
use crate::scenario::{Run, Sizes, named};

/// Which scenario finds it.
#[must_use]
pub const fn hunter(mutant: Mutant) -> &'static str {
    match mutant {
        Mutant::CommitBeforeWrite => "kill-before-write",
        Mutant::FenceOutside => "kill-written",
        Mutant::OutboxOutside => "kill-committed",
        Mutant::NoOnConflict | Mutant::MemoryInbox | Mutant::TimeRegenerated => "duplicates",
        Mutant::AckBeforeDelivery => "broker-killed",
        Mutant::WrongHashSeed => "steady",
        Mutant::DeadLetterSwallowed => "poison",
        Mutant::LostRevokeDrain => "joins-and-leaves",
        Mutant::RetryOvertakes => "terminated",
        Mutant::StaleResume => "terminated",
    }
}

/// What became of one defect.
#[derive(Debug)]
pub struct Hunt {
    /// The defect.
    pub mutant: Mutant,
    /// The oracle has found something.
    pub caught: bool,
    /// What, in words.
    pub how: String,
}

/// Plants one defect here and in the workers, and runs its scenario.
pub async fn hunt(lab: &Lab, mutant: Mutant, seed: u64) -> Hunt {
    plant(Some(mutant));
    let run = Run {
        lab,
        seed,
        sizes: Sizes::QUICK,
        mutant: Some(mutant.name()),
    };
    let outcome = match named(hunter(mutant)) {
        Some(scenario) => scenario.run(run).await,
        None => Err(anyhow::anyhow!("there is no scenario {}", hunter(mutant))),
    };
    plant(None);
    let (caught, how) = match outcome {
        Ok(outcome) => {
            let verdict = outcome.verdict;
            let kinds = [
                (Wrong::Lost, "lost"),
                (Wrong::Twice, "twice"),
                (Wrong::OutOfOrder, "out of order"),
                (Wrong::Other, "other"),
            ];
            let counts: Vec<String> = kinds
                .iter()
                .map(|(wrong, name)| (verdict.count(*wrong), name))
                .filter(|(count, _)| *count > 0)
                .map(|(count, name)| format!("{count} {name}"))
                .collect();
            let first = verdict
                .findings
                .first()
                .map_or("nothing", |finding| &finding.sentence);
            (
                !verdict.findings.is_empty(),
                format!("{}: {first}", counts.join(", ")),
            )
        }
        // Not the oracle's merit, whatever the reason.
        Err(error) => (false, format!("the run failed: {error:#}")),
    };
    Hunt {
        mutant,
        caught,
        how,
    }
}

#[cfg(feature = "mutants")]
fn plant(mutant: Option<Mutant>) {
    shardlane_sql::mutants::plant(mutant);
}

#[cfg(not(feature = "mutants"))]
fn plant(_: Option<Mutant>) {}
