//! What more nodes would do, computed from what an event costs on these: a model, with its assumptions.
//!
//! A node takes as many events a second as its cores have CPU time for. Nodes that hold data share the events evenly; a
//! coordinator sees all of them. So the rate is the smaller one of what the nodes can take together and what the
//! coordinator can pass on. Nothing else limits: no network, no disk, no lock, no hot user.

/// CPU time of an event, in us.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Costs {
    /// On all nodes with data together.
    pub(super) data_us: f64,
    /// On the coordinator; 0 where none is on the way.
    pub(super) coordinator_us: f64,
}

impl Costs {
    /// Events a second of so many cores on nodes with data and on the coordinator.
    pub(super) fn events_per_s(self, data_cores: f64, coordinator_cores: f64) -> f64 {
        let data = data_cores * 1e6 / self.data_us;
        if self.coordinator_us > 0.0 {
            data.min(coordinator_cores * 1e6 / self.coordinator_us)
        } else {
            data
        }
    }

    /// So many nodes with data keep a coordinator of the same size busy.
    pub(super) fn nodes_of_a_coordinator(self) -> Option<f64> {
        (self.coordinator_us > 0.0).then(|| self.data_us / self.coordinator_us)
    }
}

/// What a batch costs: so much each event, and so much each shard that it touches, in us of CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BatchCosts {
    pub(super) event_us: f64,
    pub(super) shard_us: f64,
}

/// Batches of one path: their size, the shards that each touches, and what an event costs there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batches {
    pub(super) events: f64,
    pub(super) shards: f64,
    pub(super) event_us: f64,
}

impl BatchCosts {
    /// From two paths that differ in the shards of a batch. `None` where the figures contradict the model.
    pub(super) fn solve(few: Batches, many: Batches) -> Option<BatchCosts> {
        let per_event = |batches: Batches| batches.shards / batches.events;
        let shard_us = (many.event_us - few.event_us) / (per_event(many) - per_event(few));
        let event_us = few.event_us - shard_us * per_event(few);
        (shard_us.is_finite() && shard_us > 0.0 && event_us > 0.0)
            .then_some(BatchCosts { event_us, shard_us })
    }

    /// The rate of batches of `events` that touch so many shards, against those that touch one.
    pub(super) fn against_one_shard(self, events: f64, shards: f64) -> f64 {
        let batch = |shards: f64| events * self.event_us + shards * self.shard_us;
        batch(1.0) / batch(shards)
    }
}

/// A published figure, and what the model says of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checked {
    pub(super) name: String,
    pub(super) published: f64,
    pub(super) predicted: f64,
}

/// Cores of the coordinator, cores of all workers, INSERTs of one row a second by 256 clients: "Scaling Out Data
/// Ingestion", <https://docs.citusdata.com/en/v7.0/performance/scaling_data_ingestion.html>.
const SINGLE_ROWS: [(f64, f64, f64); 4] = [
    (2.0, 2.0, 9_000.0),
    (4.0, 2.0, 16_600.0),
    (8.0, 2.0, 16_700.0),
    (8.0, 4.0, 29_600.0),
];

/// The form of the model against Citus's own figures: the first cluster is bound by its coordinator and the third by its
/// workers, which gives the two costs; the other two are predicted.
pub(super) fn check_form() -> Vec<Checked> {
    let [first, second, third, fourth] = SINGLE_ROWS;
    let costs = Costs {
        coordinator_us: first.0 * 1e6 / first.2,
        data_us: third.1 * 1e6 / third.2,
    };
    [second, fourth]
        .map(|(coordinator, workers, published)| Checked {
            name: format!("{coordinator} + {workers} cores"),
            published,
            predicted: costs.events_per_s(workers, coordinator),
        })
        .to_vec()
}

/// Shards, and rows a second of INSERTs of 100 rows into so many:
/// <https://github.com/citusdata/citus/issues/1604>.
const HUNDRED_ROWS: [(f64, f64); 3] = [(1.0, 190_000.0), (8.0, 13_200.0), (32.0, 5_800.0)];

/// What this machine's costs say of batches of 100 rows over several shards, from the published rate for one shard.
pub(super) fn check_batches(costs: BatchCosts) -> Vec<Checked> {
    let [(_, one), several @ ..] = HUNDRED_ROWS;
    several
        .map(|(shards, published)| Checked {
            name: format!("100 rows, {shards} shards"),
            published,
            predicted: one * costs.against_one_shard(100.0, shards),
        })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_smaller_one_of_nodes_and_coordinator() {
        let costs = Costs {
            data_us: 40.0,
            coordinator_us: 10.0,
        };
        assert_eq!(costs.events_per_s(8.0, 4.0), 200_000.0);
        // The coordinator's 4 cores pass on 400,000.
        assert_eq!(costs.events_per_s(16.0, 4.0), 400_000.0);
        assert_eq!(costs.events_per_s(64.0, 4.0), 400_000.0);
        assert_eq!(costs.nodes_of_a_coordinator(), Some(4.0));
        let without = Costs {
            coordinator_us: 0.0,
            ..costs
        };
        assert_eq!(without.events_per_s(64.0, 4.0), 1_600_000.0);
        assert_eq!(without.nodes_of_a_coordinator(), None);
    }

    #[test]
    fn two_paths_give_the_costs_of_an_event_and_of_a_shard() {
        // 20 us an event and 300 us a shard.
        let few = Batches {
            events: 100.0,
            shards: 1.0,
            event_us: 23.0,
        };
        let many = Batches {
            events: 400.0,
            shards: 16.0,
            event_us: 32.0,
        };
        let costs = BatchCosts::solve(few, many).unwrap();
        assert!((costs.event_us - 20.0).abs() < 1e-9 && (costs.shard_us - 300.0).abs() < 1e-9);
        let ratio = costs.against_one_shard(100.0, 8.0);
        assert!((ratio - 2_300.0 / 4_400.0).abs() < 1e-9, "{ratio}");
        // More shards for less: that is not this model.
        let cheap = Batches {
            event_us: 10.0,
            ..many
        };
        assert_eq!(BatchCosts::solve(few, cheap), None);
    }

    #[test]
    fn the_form_is_near_the_published_figures() {
        let checked = check_form();
        let off = |checked: &Checked| checked.predicted / checked.published;
        assert_eq!(checked[0].predicted, 16_700.0);
        assert!((0.99..1.01).contains(&off(&checked[0])), "{checked:?}");
        // The larger cluster does a little less than linear.
        assert!((1.1..1.15).contains(&off(&checked[1])), "{checked:?}");
    }
}
