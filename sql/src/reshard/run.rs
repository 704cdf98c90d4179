//! The steps of a reshard, done one after the other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use shardlane_router::{ShardId, SlotMap};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::journal::Journal;
use super::replicate::Link;
use super::servers::{Server, Servers};
use super::snapshots::{Marks, compare_snapshots};
use super::verify::{self, Side};
use super::{Change, Plan, ReshardError, Step};
use crate::applied::read_past;
use crate::catalog::{Catalog, Pace, ShardEntry};
use crate::follow::{address, connect};
use crate::identity::{ShardIdentity, admit, read, validate};
use crate::migrate::migrate_config;
use crate::slots::SlotSet;
use crate::store::parse;
use crate::{Detail, Layout, SLOT_TABLES, SqlError};

/// Names the lock that a running reshard holds in the first shard. The number is arbitrary.
pub(crate) const RESHARD_LOCK: i64 = 0x0072_6573_6861_7264; // "reshard"

/// How long is waited for one marker before the writers are asked to hold back more.
const CATCH_UP_LOOK: Duration = Duration::from_secs(2);
/// A lag that no target is asked to fall below.
const LAG_ENOUGH: Duration = Duration::from_millis(20);
/// Writers hold back to this share of their time, and no further.
const SHARE_MIN: u8 = 5;

/// Bounds of a reshard.
#[derive(Debug, Clone, Copy)]
pub struct ReshardOptions {
    /// How long the slots of one target may wait at most; then they are thawed.
    pub stall_max: Duration,
    /// How often a target's slots are frozen before it is given up; each time its writers hold back more before.
    pub tries_max: u32,
    /// How long one first copy may take.
    pub copy_max: Duration,
    /// How long a target may take to get right behind its sources.
    pub catch_up_max: Duration,
}

impl Default for ReshardOptions {
    fn default() -> Self {
        ReshardOptions {
            stall_max: Duration::from_secs(2),
            tries_max: 6,
            copy_max: Duration::from_secs(3600),
            catch_up_max: Duration::from_secs(300),
        }
    }
}

/// The shards of a reshard, and what is known of it.
pub struct Reshard {
    given: Vec<String>,
    /// Who owns what, as long as no shard knows better.
    initial: Catalog,
    servers: Servers,
    options: ReshardOptions,
    /// Up to where the sources of the target at hand are compared. Not in the journal: a command that was killed
    /// compares all.
    marks: HashMap<ShardId, Marks>,
    lock: Option<Client>,
    /// Of 100: how much of their time the writers of the slots at hand may work.
    share: u8,
}

impl Reshard {
    /// Connects to all shards. `urls` are the DSNs of the shards in order, and of databases that join if a reshard is
    /// under way; `map` says who owns what if no slot has ever moved.
    ///
    /// # Errors
    /// [`ReshardError::Sql`] where a shard does not answer or is another one.
    pub async fn connect(
        urls: &[String],
        map: SlotMap,
        options: ReshardOptions,
    ) -> Result<Reshard, ReshardError> {
        let configs = urls
            .iter()
            .map(|url| parse(url))
            .collect::<Result<Vec<_>, _>>()?;
        let initial = Catalog::first(map, configs.iter().map(address).collect());
        let first = Servers::connect(urls, initial.shards.iter()).await?;
        let catalog = first.catalog(&initial).await?;
        if catalog == initial {
            first.verify(&initial, urls.len()).await?;
        }
        let mut reshard = Reshard {
            given: urls.to_vec(),
            servers: Servers::connect(urls, catalog.shards.iter()).await?,
            initial: catalog,
            options,
            marks: HashMap::new(),
            lock: None,
            share: 100,
        };
        if let Some(journal) = reshard.journal().await? {
            let entries = journal
                .plan
                .before
                .shards
                .iter()
                .chain(&journal.plan.joining);
            reshard.servers = Servers::connect(urls, entries).await?;
        }
        Ok(reshard)
    }

    /// Who owns what now.
    ///
    /// # Errors
    /// [`ReshardError::Sql`].
    pub async fn catalog(&self) -> Result<Catalog, ReshardError> {
        self.servers.catalog(&self.initial).await
    }

    /// The reshard that is under way, if one is.
    ///
    /// # Errors
    /// [`ReshardError::Sql`].
    pub async fn journal(&self) -> Result<Option<Journal>, ReshardError> {
        for (_, server) in self.servers.all() {
            if let Some(journal) = Journal::open(&server.client).await? {
                return Ok(Some(journal));
            }
        }
        Ok(None)
    }

    /// What `change` would do. Nothing is written.
    ///
    /// # Errors
    /// [`ReshardError`]: nothing moves, an unknown shard, a source that cannot be followed.
    pub async fn plan(&self, change: &Change) -> Result<Plan, ReshardError> {
        let addresses = change
            .add
            .iter()
            .map(|url| Ok(address(&parse(url)?)))
            .collect::<Result<Vec<_>, ReshardError>>()?;
        let plan = Plan::new(self.catalog().await?, addresses, change)?;
        for from in plan.sources() {
            let row = self
                .servers
                .of(from)?
                .client
                .query_one("show wal_level", &[])
                .await?;
            let found: String = row.get(0);
            if found != "logical" {
                return Err(ReshardError::WalLevel { shard: from, found });
            }
        }
        Ok(plan)
    }

    /// How many rows of all tables a plan moves.
    ///
    /// # Errors
    /// [`ReshardError::Sql`].
    pub async fn rows_of(&self, plan: &Plan) -> Result<i64, ReshardError> {
        let mut rows = 0;
        for moved in &plan.moves {
            let client = &self.servers.of(moved.from)?.client;
            for table in SLOT_TABLES {
                let condition = moved.slots.condition();
                let query = format!("select count(*) from {table} where {condition}");
                rows += client.query_one(&query, &[]).await?.get::<_, i64>(0);
            }
        }
        Ok(rows)
    }

    /// Does a reshard, or goes on with the one that is under way if `change` is empty. `progress` is told of each step
    /// before it begins, with its number and how many there are.
    ///
    /// # Errors
    /// [`ReshardError`]; run it again to go on, or [`Reshard::abort`].
    pub async fn run(
        &mut self,
        change: &Change,
        mut progress: impl FnMut(Step, usize, usize),
    ) -> Result<Plan, ReshardError> {
        let (plan, is_new) = match (self.journal().await?, change.is_empty()) {
            (Some(journal), true) => (journal.plan, false),
            (Some(journal), false) => return Err(under_way(&journal)),
            (None, true) => return Err(ReshardError::NoneUnderWay),
            (None, false) => (self.plan(change).await?, true),
        };
        if is_new {
            let entries = plan.before.shards.iter().chain(&plan.joining);
            let mut urls = self.given.clone();
            urls.extend(change.add.iter().cloned());
            let servers = Servers::connect(&urls, entries).await?;
            for entry in &plan.joining {
                servers.refuse_unless_empty(entry).await?;
            }
            (self.servers, self.given) = (servers, urls);
        }
        self.lock(&plan).await?;
        let result = async {
            let mut journal = self.locked_journal(&plan, is_new).await?;
            self.go_on(&mut journal, &mut progress).await
        };
        let result = result.await;
        self.unlock().await;
        result.map(|()| plan)
    }

    /// The journal of `plan`, once nobody else can write one: another command may have begun or ended one meanwhile.
    async fn locked_journal(&self, plan: &Plan, is_new: bool) -> Result<Journal, ReshardError> {
        match self.journal().await? {
            Some(journal) if journal.plan.id == plan.id => Ok(journal),
            Some(journal) => Err(under_way(&journal)),
            None if !is_new => Err(ReshardError::NoneUnderWay),
            None if self.catalog().await?.epoch() != plan.before.epoch() => Err(ReshardError::Busy),
            None => Journal::begin(&self.home(plan)?.client, plan.clone()).await,
        }
    }

    async fn go_on(
        &mut self,
        journal: &mut Journal,
        progress: &mut impl FnMut(Step, usize, usize),
    ) -> Result<(), ReshardError> {
        let plan = journal.plan.clone();
        let steps = plan.steps();
        let (mut frozen_at, mut stalls): (Option<Instant>, u32) = (None, 0);
        while let Some(step) = steps.get(journal.done).copied() {
            progress(step, journal.done + 1, steps.len());
            if matches!(step, Step::Drain { .. }) {
                frozen_at.get_or_insert_with(Instant::now);
            }
            // A fifth is kept for the thaw or the switch, which need locks too.
            let budget = self.options.stall_max.mul_f64(0.8);
            let left = frozen_at.map(|at| budget.saturating_sub(at.elapsed()));
            if let Err(error) = self.step(&plan, step, left).await {
                frozen_at = None;
                if let Some(to) = step.target()
                    && let Err(second) = self.take_back(journal, to).await
                {
                    tracing::warn!("slots of shard {to} may be frozen still: {second}");
                    return Err(error);
                }
                stalls += 1;
                if !matches!(error, ReshardError::Stalled { .. })
                    || stalls >= self.options.tries_max
                {
                    return Err(error);
                }
                tracing::warn!("{error}; trying again with writers that hold back more");
                self.share = (self.share / 2).max(SHARE_MIN);
                continue;
            }
            match step {
                Step::Freeze { .. } => {
                    frozen_at.get_or_insert_with(Instant::now);
                }
                Step::Switch { .. } => (frozen_at, stalls, self.share) = (None, 0, 100),
                _ => {}
            }
            journal
                .advance(&self.home(&plan)?.client, journal.done + 1)
                .await?;
        }
        journal.end(&self.home(&plan)?.client).await
    }

    /// Thaws what is frozen for a target, and goes back to where the next run begins with it. Not if it has taken its
    /// slots: whether an error came before or after that commit, only the target knows.
    async fn take_back(&mut self, journal: &mut Journal, to: ShardId) -> Result<(), ReshardError> {
        let plan = journal.plan.clone();
        if self.has_lost_the_lock() {
            // The lock went with the connection: somebody else may be at work.
            return Err(ReshardError::Busy);
        }
        self.servers.reconnect().await?;
        self.thaw(&plan, Some(to)).await?;
        let now = self.catalog().await?;
        if incoming(&plan, to).without(&now.owned(to)).is_empty() {
            return Ok(());
        }
        let mut steps = plan.steps().into_iter();
        let again = steps.position(|step| step == Step::CatchUp { to });
        let home = &self.home(&plan)?.client;
        journal.advance(home, again.unwrap_or(0)).await
    }

    /// Gives the reshard up that is under way: the sources are as they were, joining shards own nothing.
    ///
    /// # Errors
    /// [`ReshardError::Switched`] once a target has taken slots.
    pub async fn abort(&mut self) -> Result<Plan, ReshardError> {
        let plan = self
            .journal()
            .await?
            .ok_or(ReshardError::NoneUnderWay)?
            .plan;
        self.lock(&plan).await?;
        let result = async {
            let journal = self.locked_journal(&plan, false).await?;
            self.give_up(&journal).await
        };
        let result = result.await;
        self.unlock().await;
        result.map(|()| plan)
    }

    async fn give_up(&mut self, journal: &Journal) -> Result<(), ReshardError> {
        let plan = &journal.plan;
        let now = self.catalog().await?;
        for moved in &plan.moves {
            if moved
                .slots
                .iter()
                .any(|slot| now.map.shard_of(slot) == moved.to)
            {
                return Err(ReshardError::Switched(moved.to));
            }
        }
        self.thaw(plan, None).await?;
        self.detach(plan).await?;
        for to in plan.targets() {
            // A joining database that was never prepared has nothing to forget.
            let identity = read(&self.servers.of(to)?.client).await?;
            if identity.is_some_and(|identity| identity.shard == to) {
                self.forget_incoming(plan, to).await?;
            }
        }
        self.leave(plan, |entry| {
            plan.joining.iter().any(|new| new.shard == entry.shard)
        })
        .await?;
        for entry in &plan.before.shards {
            validate(&self.servers.of(entry.shard)?.client).await?;
        }
        journal.end(&self.home(plan)?.client).await
    }

    /// `left` is how long slots that are frozen already may stay so.
    async fn step(
        &mut self,
        plan: &Plan,
        step: Step,
        left: Option<Duration>,
    ) -> Result<(), ReshardError> {
        let stall_max = self.options.stall_max;
        match step {
            Step::Prepare => self.prepare(plan).await,
            Step::Copy { from, to } => {
                let link = self.link(plan, from, to)?;
                link.attach().await?;
                link.wait_for_copy(self.options.copy_max).await
            }
            Step::CatchUp { to } => self.catch_up(plan, to).await,
            Step::Compare { to } => {
                let mut marks = HashMap::new();
                for link in self.links(plan, to)? {
                    marks.insert(link.moved.from, compare_snapshots(&link).await?);
                }
                self.marks = marks;
                Ok(())
            }
            Step::Freeze { from, to } => {
                // The first one waits for its locks with nothing frozen yet.
                let Some(left) = left else {
                    return self.freeze(plan, from, to).await;
                };
                let frozen = tokio::time::timeout(left, self.freeze(plan, from, to)).await;
                frozen.unwrap_or(Err(ReshardError::Stalled { to, stall_max }))
            }
            Step::Drain { to } => {
                let links = self.links(plan, to)?;
                let markers = links
                    .iter()
                    .map(|link| link.marker(left.unwrap_or(stall_max)));
                let arrived = try_join_all(markers).await?;
                self.in_time(to, arrived.iter().all(Option::is_some))
            }
            Step::Verify { to } => {
                let verified = self.verify(plan, to, left.unwrap_or(stall_max)).await?;
                self.in_time(to, verified)
            }
            Step::Switch { to } => {
                let left = left.unwrap_or(stall_max);
                let switched = tokio::time::timeout(left, self.switch(plan, to)).await;
                switched.unwrap_or(Err(ReshardError::Stalled { to, stall_max }))
            }
            Step::Detach => self.detach(plan).await,
            Step::Clean { from } => self.clean(plan, from).await,
            Step::Finish => {
                self.leave(plan, |entry| plan.leaving.contains(&entry.shard))
                    .await
            }
        }
    }

    /// Compares what was written since the snapshots. False if that takes longer than `left`.
    async fn verify(&self, plan: &Plan, to: ShardId, left: Duration) -> Result<bool, ReshardError> {
        let links = self.links(plan, to)?;
        let compare = async {
            for link in &links {
                // A query that nobody waits for any longer would hold up the thaw behind it.
                link.bound_statements(Some(left)).await?;
                let marks = self.marks.get(&link.moved.from);
                let from = Side {
                    client: &link.from.client,
                    since: marks.map(|marks| marks.from),
                };
                let to = Side {
                    client: &link.to.client,
                    since: marks.map(|marks| marks.to),
                };
                verify::compare(link.moved, from, to).await?;
            }
            Ok::<_, ReshardError>(())
        };
        let result = tokio::time::timeout(left, compare).await;
        for link in &links {
            link.bound_statements(None).await?;
        }
        match result {
            Ok(Err(ReshardError::Sql(SqlError::Postgres(error))))
                if error.code() == Some(&SqlState::QUERY_CANCELED) =>
            {
                Ok(false)
            }
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    async fn prepare(&mut self, plan: &Plan) -> Result<(), ReshardError> {
        let mut catalog = self.catalog().await?;
        if let Some(first) = plan.joining.first()
            && catalog.entry(first.shard).is_none()
        {
            let mut shards = catalog.shards.clone();
            shards.extend(plan.joining.iter().cloned());
            catalog = catalog.with_shards(shards)?;
        }
        for entry in &plan.joining {
            let server = self.servers.of_mut(entry.shard)?;
            migrate_config(&server.config, Layout::Shards, Detail::None).await?;
            let identity = ShardIdentity::in_catalog(&catalog, entry);
            let transaction = server.client.transaction().await?;
            let database = format!("{}:{}/{}", entry.host, entry.port, entry.database);
            crate::identity::install(&transaction, &database, &identity).await?;
            transaction.commit().await?;
        }
        for to in plan.targets() {
            self.forget_incoming(plan, to).await?;
            let incoming = incoming(plan, to);
            let accepted = catalog.accepted(to);
            let server = self.servers.of_mut(to)?;
            let transaction = server.client.transaction().await?;
            admit(&transaction, &accepted.union(&incoming)).await?;
            transaction.commit().await?;
        }
        for (_, server) in self.servers.all() {
            server
                .client
                .batch_execute("delete from reshard_marker")
                .await?;
        }
        self.servers.announce(&catalog).await
    }

    /// Until a marker takes less than an eighth of the stall that is allowed; the rest is for the freeze and for
    /// verifying. A target applies row by row what its sources' writers wrote in batches: if it falls behind, the writers
    /// are asked to hold back, more and more.
    async fn catch_up(&mut self, plan: &Plan, to: ShardId) -> Result<(), ReshardError> {
        let began = Instant::now();
        let enough = (self.options.stall_max / 8).max(LAG_ENOUGH);
        loop {
            self.announce_pace(plan, to).await?;
            let links = self.links(plan, to)?;
            let markers = links
                .iter()
                .map(|link| link.marker(CATCH_UP_LOOK.max(enough)));
            let lags = try_join_all(markers).await?;
            if lags.iter().all(|lag| lag.is_some_and(|lag| lag < enough)) {
                return Ok(());
            }
            if began.elapsed() > self.options.catch_up_max {
                self.share = 100;
                self.announce_pace(plan, to).await?;
                let stall_max = self.options.stall_max;
                return Err(ReshardError::Lagging { to, stall_max });
            }
            self.share = (self.share / 2).max(SHARE_MIN);
        }
    }

    async fn announce_pace(&self, plan: &Plan, to: ShardId) -> Result<(), ReshardError> {
        let now = self.catalog().await?;
        let pace = (self.share < 100).then(|| Pace {
            slots: incoming(plan, to),
            share: self.share,
        });
        if now.pace != pace {
            self.servers.announce(&now.with_pace(pace)?).await?;
        }
        Ok(())
    }

    async fn freeze(
        &mut self,
        plan: &Plan,
        from: ShardId,
        to: ShardId,
    ) -> Result<(), ReshardError> {
        let now = self.catalog().await?;
        let slots = &moved(plan, from, to)?.slots;
        if slots.without(&now.frozen).is_empty() {
            return Ok(());
        }
        self.servers
            .change(from, &now.freeze(from, slots)?, &[])
            .await
    }

    /// The point of no return: one transaction in the target.
    async fn switch(&mut self, plan: &Plan, to: ShardId) -> Result<(), ReshardError> {
        let now = self.catalog().await?;
        let slots = incoming(plan, to);
        if slots.without(&now.owned(to)).is_empty() {
            return Ok(());
        }
        let mut next = now.give(to, &slots)?;
        next.pace = None;
        // The sources refuse these slots, so what they remember of them stays as it is.
        let mut past = Vec::new();
        for moved in plan.incoming(to) {
            let source = &self.servers.of(moved.from)?.client;
            past.extend(read_past(source, &moved.slots).await?);
        }
        self.servers.change(to, &next, &past).await
    }

    /// Gives frozen slots back to their owners, those of one target or all, and asks nobody to hold back any longer.
    async fn thaw(&mut self, plan: &Plan, only: Option<ShardId>) -> Result<(), ReshardError> {
        for moved in &plan.moves {
            let now = self.catalog().await?;
            let is_frozen = moved.slots.iter().any(|slot| now.frozen.contains(slot));
            if is_frozen && only.is_none_or(|to| to == moved.to) {
                let next = now.give(moved.from, &moved.slots)?;
                self.servers.change(moved.from, &next, &[]).await?;
            }
        }
        let now = self.catalog().await?;
        if now.pace.is_some() {
            self.servers.announce(&now.with_pace(None)?).await?;
        }
        Ok(())
    }

    async fn detach(&self, plan: &Plan) -> Result<(), ReshardError> {
        for moved in &plan.moves {
            self.link(plan, moved.from, moved.to)?.detach().await?;
        }
        Ok(())
    }

    async fn clean(&self, plan: &Plan, from: ShardId) -> Result<(), ReshardError> {
        let now = self.catalog().await?;
        let gone = plan
            .moves
            .iter()
            .filter(|moved| moved.from == from)
            .fold(SlotSet::empty(), |all, moved| all.union(&moved.slots))
            .without(&now.owned(from));
        let server = self.servers.of(from)?;
        delete(server, &gone).await?;
        Ok(validate(&server.client).await?)
    }

    /// Rows that were copied to a target that does not own them, and its leave to take them.
    async fn forget_incoming(&mut self, plan: &Plan, to: ShardId) -> Result<(), ReshardError> {
        let accepted = self.catalog().await?.accepted(to);
        let server = self.servers.of_mut(to)?;
        let transaction = server.client.transaction().await?;
        admit(&transaction, &accepted).await?;
        transaction.commit().await?;
        delete(server, &incoming(plan, to).without(&accepted)).await
    }

    /// Takes shards that own nothing off the catalog, and tells all.
    async fn leave(
        &self,
        plan: &Plan,
        leaves: impl Fn(&ShardEntry) -> bool,
    ) -> Result<(), ReshardError> {
        let now = self.catalog().await?;
        let stay: Vec<ShardEntry> = now
            .shards
            .iter()
            .filter(|entry| !leaves(entry) || !now.owned(entry.shard).is_empty())
            .cloned()
            .collect();
        for to in plan.targets() {
            if now.entry(to).is_some() && !now.owned(to).is_empty() {
                validate(&self.servers.of(to)?.client).await?;
            }
        }
        self.servers
            .announce(&now.with_shards(stay)?.with_pace(None)?)
            .await
    }

    fn in_time(&self, to: ShardId, in_time: bool) -> Result<(), ReshardError> {
        if in_time {
            return Ok(());
        }
        let stall_max = self.options.stall_max;
        Err(ReshardError::Stalled { to, stall_max })
    }

    fn links<'a>(&'a self, plan: &'a Plan, to: ShardId) -> Result<Vec<Link<'a>>, ReshardError> {
        plan.incoming(to)
            .map(|moved| self.link(plan, moved.from, to))
            .collect()
    }

    fn link<'a>(
        &'a self,
        plan: &'a Plan,
        from: ShardId,
        to: ShardId,
    ) -> Result<Link<'a>, ReshardError> {
        let moved = moved(plan, from, to)?;
        Ok(Link::new(
            plan,
            moved,
            self.servers.of(from)?,
            self.servers.of(to)?,
        ))
    }

    /// The shard that keeps the journal: one that stays.
    fn home(&self, plan: &Plan) -> Result<&Server, ReshardError> {
        let mut shards = plan.before.shards.iter();
        let first = shards.find(|entry| !plan.leaving.contains(&entry.shard));
        let first = first.ok_or(ReshardError::NoneUnderWay)?;
        self.servers.of(first.shard)
    }

    /// Takes the lock of the first shard, the same one for all plans, on a connection of its own: that of a killed command
    /// is idle and ends at once, where one that waits in a statement would keep the lock.
    async fn lock(&mut self, plan: &Plan) -> Result<(), ReshardError> {
        let first = plan.before.shards.first();
        let first = first.ok_or(ReshardError::NoneUnderWay)?.shard;
        let client = connect(&self.servers.of(first)?.config).await?;
        let query = "select pg_try_advisory_lock($1)";
        let row = client.query_one(query, &[&RESHARD_LOCK]).await?;
        if !row.get::<_, bool>(0) {
            return Err(ReshardError::Busy);
        }
        self.lock = Some(client);
        Ok(())
    }

    async fn unlock(&mut self) {
        if let Some(lock) = self.lock.take() {
            // A connection that is gone has given it back.
            lock.batch_execute("select pg_advisory_unlock_all()")
                .await
                .ok();
        }
    }

    fn has_lost_the_lock(&self) -> bool {
        self.lock.as_ref().is_none_or(Client::is_closed)
    }
}

fn under_way(journal: &Journal) -> ReshardError {
    ReshardError::UnderWay {
        joining: journal.plan.joining.len(),
        leaving: journal.plan.leaving.len(),
    }
}

fn moved(plan: &Plan, from: ShardId, to: ShardId) -> Result<&super::Move, ReshardError> {
    let mut moves = plan.moves.iter();
    moves
        .find(|moved| moved.from == from && moved.to == to)
        .ok_or(ReshardError::UnknownShard(from))
}

fn incoming(plan: &Plan, to: ShardId) -> SlotSet {
    plan.incoming(to)
        .fold(SlotSet::empty(), |all, moved| all.union(&moved.slots))
}

async fn delete(server: &Server, slots: &SlotSet) -> Result<(), ReshardError> {
    if slots.is_empty() {
        return Ok(());
    }
    let condition = slots.condition();
    for table in SLOT_TABLES {
        let delete = format!("delete from {table} where {condition}");
        server.client.batch_execute(&delete).await?;
    }
    Ok(())
}
