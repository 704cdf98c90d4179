//! What growing costs, by table and by formula: `cargo run -p shardlane-router --example grow`

use shardlane_router::{Epoch, MapError, SLOT_COUNT, ShardId, Slot, SlotMap, TokenHash};

fn main() -> Result<(), MapError> {
    println!("partitions   slots moved by table   by slot % count   aligned after");
    for (from, to) in [(12, 13), (12, 24), (16, 32), (32, 33), (32, 64)] {
        let map = SlotMap::aligned(
            Epoch(1),
            TokenHash::Postgres,
            from,
            &[ShardId(0), ShardId(1)],
        )?;
        let plan = map.plan_partitions(to)?;
        let by_formula = Slot::all()
            .map(|slot| u32::from(slot.number()))
            .filter(|slot| slot % from != slot % to)
            .count();
        println!(
            "{:<12} {:>20} {:>17}   {}",
            format!("{from} -> {to}"),
            percent(plan.moves.len()),
            percent(by_formula),
            plan.map.alignment().is_aligned(),
        );
    }
    Ok(())
}

fn percent(slots: usize) -> String {
    let tenths = (slots * 1000 + SLOT_COUNT / 2) / SLOT_COUNT;
    format!("{}.{} %", tenths / 10, tenths % 10)
}
