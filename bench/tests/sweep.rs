//! A sweep on a real server, as small as it can be.

use shardlane_bench::study::Stop;
use shardlane_bench::sweep::{Knob, SweepSettings, Usual, run};
use shardlane_local::require;
use shardlane_sql::Layout;

fn settings(knob: Knob, layout: Layout) -> SweepSettings {
    SweepSettings {
        knob,
        layouts: vec![layout],
        events: 1_000,
        usual: Usual {
            partitions: 4,
            ..Usual::default()
        },
        runs: 1,
    }
}

/// Takes 15 s, more on a busy machine: two experiments start a server and a broker each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_what_the_worker_was_given() {
    if require("postgres").is_none() || require("kafka").is_none() {
        return;
    }
    let of = async |knob| {
        let settings = settings(knob, Layout::Single);
        let study = run(&settings, "shardlane experiment sweep", Stop::never())
            .await
            .unwrap();
        assert_eq!(study.faults, Vec::<String>::new());
        study
    };
    let (payloads, batches) = futures_util::join!(of(Knob::PayloadBytes), of(Knob::BatchRows));
    assert_eq!(payloads.experiment, "sweep-payload-bytes");
    let figures = |study: &shardlane_bench::study::Study, name: &str| -> Vec<f64> {
        study
            .results
            .iter()
            .map(|cell| cell.figures[name].median)
            .collect()
    };
    // 200, 300, 1000 and 4000 bytes, each payload in the log of its row.
    let wal = figures(&payloads, "wal_bytes");
    assert!(wal.windows(2).all(|two| two[0] < two[1]), "{wal:?}");
    assert!(wal[3] - wal[0] > 3_000.0, "{wal:?}");
    // At most 50 records a batch, and at most 200.
    let sizes = figures(&batches, "batch_events");
    assert!(
        sizes[0] <= 50.0 && sizes[1] <= 200.0 && sizes[0] < sizes[4],
        "{sizes:?}"
    );
}

#[tokio::test]
async fn a_setting_that_a_layout_has_not_is_refused_before_a_server_starts() {
    for (knob, layout) in [
        (Knob::CitusShards, Layout::Single),
        (Knob::Hash, Layout::Shards),
    ] {
        let refused = run(&settings(knob, layout), "", Stop::never())
            .await
            .unwrap_err();
        assert!(refused.to_string().contains(layout.as_str()), "{refused}");
    }
}
