use super::*;
use crate::study::Run;

fn cell(question: Question, layout: &str, path: &str, reads: f64, cpu: f64) -> CellResult {
    let run = Run::from([
        ("reads_per_s".to_owned(), reads),
        ("server_cpu_us".to_owned(), cpu),
    ]);
    CellResult::new(&part_name(question, 8), layout, path, vec![run])
}

#[test]
fn findings_say_who_loses_too() {
    let mut study = Study::new("reads", "shardlane experiment reads", Started::now());
    study.results = vec![
        cell(Question::User, "single", "one-server", 1000.0, 100.0),
        cell(Question::User, "citus", "owner", 800.0, 120.0),
        cell(Question::User, "citus", "coordinator", 400.0, 240.0),
        cell(Question::User, "citus", "any-node", 500.0, 160.0),
        cell(Question::Directory, "citus", "coordinator", 50.0, 2400.0),
        cell(Question::Scan, "citus", "coordinator", 5.0, 24000.0),
    ];
    let findings = findings::findings(&study, &[8]);
    assert_eq!(
        findings,
        [
            "With 8 at once, all orders of a user: by its owner Citus gives 2.00 times the reads of the coordinator and 1.60 times \
             those of any node in turn, for 0.50 and 0.75 of the server CPU.",
            "Against one Postgres on the same cores, all orders of a user, 8 at once: Citus by the owner 0.80 times the reads for \
             1.20 of the CPU; Citus by its coordinator 0.40 times the reads for 2.40 of the CPU.",
            "An order without its user, in server CPU of a read by user, 8 at once: Citus's coordinator 10.0 times with the \
             directory, 100.0 times without.",
        ]
    );
}
