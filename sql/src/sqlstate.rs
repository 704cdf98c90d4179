//! What each class of SQLSTATE means for a batch: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use tokio_postgres::error::SqlState;

use crate::ErrorClass;

/// Declares the classes, each with its two characters, and what to do about an error of it.
macro_rules! sqlstate_classes {
    ($($code:literal $name:ident $does:ident),+ $(,)?) => {
        /// A class of SQLSTATE.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum SqlStateClass { $($name),+ }

        impl SqlStateClass {
            #[cfg(test)]
            const ALL: &[(&'static str, ErrorClass)] = &[$(($code, ErrorClass::$does)),+];

            /// The class of a SQLSTATE; `None` for one that PostgreSQL's manual does not list.
            fn of(state: &SqlState) -> Option<SqlStateClass> {
                [$(($code, SqlStateClass::$name)),+]
                    .into_iter()
                    .find(|(code, _)| state.code().starts_with(code))
                    .map(|(_, class)| class)
            }

            const fn does(self) -> ErrorClass {
                match self { $(SqlStateClass::$name => ErrorClass::$does),+ }
            }
        }
    };
}

sqlstate_classes!(
    "00" Successful Permanent,
    "01" Warning Permanent,
    "02" NoData Permanent,
    "03" StatementNotYetComplete Permanent,
    "08" Connection Transient,
    "09" TriggeredAction Permanent,
    "0A" FeatureNotSupported Permanent,
    "0B" TransactionInitiation Permanent,
    "0F" Locator Permanent,
    "0L" Grantor Permanent,
    "0P" Role Permanent,
    "0Z" Diagnostics Permanent,
    "10" XQuery Permanent,
    "20" CaseNotFound Permanent,
    "21" Cardinality Permanent,
    // A value does not fit its type.
    "22" Data Data,
    // A trigger or CHECK refused a row.
    "23" IntegrityConstraint Data,
    "24" CursorState Permanent,
    "25" TransactionState Permanent,
    "26" StatementName Permanent,
    "27" TriggeredDataChange Permanent,
    // A password that is being changed is no reason to stop all partitions; at start it is refused at once.
    "28" Authorization Transient,
    "2B" DependentPrivileges Permanent,
    "2D" TransactionTermination Permanent,
    "2F" SqlRoutine Permanent,
    "34" CursorName Permanent,
    "38" ExternalRoutine Permanent,
    "39" ExternalRoutineInvocation Permanent,
    "3B" Savepoint Permanent,
    "3D" CatalogName Permanent,
    "3F" SchemaName Permanent,
    // Serialization failure, deadlock.
    "40" Rollback Transient,
    "42" SyntaxOrAccess Permanent,
    "44" WithCheckOption Data,
    // Disk full, out of memory, too many connections.
    "53" Resources Transient,
    // A row is beyond one of the server's limits, such as JSON nested deeper than its stack.
    "54" ProgramLimit Data,
    "55" PrerequisiteState Permanent,
    // Shutdown, restart, cancelled by a timeout or a person.
    "57" OperatorIntervention Transient,
    "58" System Transient,
    "72" Snapshot Permanent,
    "F0" ConfigurationFile Permanent,
    "HV" ForeignData Permanent,
    "P0" PlPgSql Permanent,
    "XX" Internal Permanent,
);

/// SQLSTATEs that are not as the rest of their class.
const EXCEPTIONS: [(SqlState, ErrorClass); 5] = [
    (SqlState::LOCK_NOT_AVAILABLE, ErrorClass::Transient),
    (SqlState::OBJECT_IN_USE, ErrorClass::Transient),
    // A standby answers, or a server that is just becoming the primary.
    (SqlState::READ_ONLY_SQL_TRANSACTION, ErrorClass::Transient),
    // RAISE in a trigger: it refuses a row.
    (SqlState::RAISE_EXCEPTION, ErrorClass::Data),
    // Also said when the catalog changes under a statement, as when a reshard drops its publication ("cache lookup
    // failed for publication"). Corruption has codes of its own, XX001 and XX002.
    (SqlState::INTERNAL_ERROR, ErrorClass::Transient),
];

/// What to do about an error with this SQLSTATE.
pub(crate) fn class_of(state: &SqlState) -> ErrorClass {
    let exception = EXCEPTIONS.iter().find(|(known, _)| known == state);
    match (exception, SqlStateClass::of(state)) {
        (Some((_, class)), _) => *class,
        (None, Some(class)) => class.does(),
        // Of an extension: nobody knows whether waiting helps.
        (None, None) => ErrorClass::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows `| code | ... | class |` of the table of SQLSTATEs.
    fn documented() -> Vec<(String, String)> {
        include_str!("../../docs/errors.md")
            .lines()
            .skip_while(|line| !line.starts_with("## SQLSTATE"))
            .skip(1)
            .take_while(|line| !line.starts_with("## "))
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|line| {
                let (code, rest) = line.split_once('`').unwrap();
                let class = rest.split('|').nth(2).unwrap();
                (code.to_owned(), class.trim().to_lowercase())
            })
            .collect()
    }

    #[test]
    fn the_table_in_docs_names_every_class_and_what_is_done() {
        let name = |class: ErrorClass| format!("{class:?}").to_lowercase();
        let mut expected: Vec<_> = SqlStateClass::ALL
            .iter()
            .map(|(code, class)| ((*code).to_owned(), name(*class)))
            .chain(
                EXCEPTIONS
                    .iter()
                    .map(|(state, class)| (state.code().to_owned(), name(*class))),
            )
            .collect();
        expected.sort();
        let mut found = documented();
        found.sort();
        assert_eq!(found, expected);
        for (code, class) in &found {
            // A code of the class that is none of the exceptions.
            let state = SqlState::from_code(&format!("{code:Z<5}"));
            assert_eq!(name(class_of(&state)), *class, "{code}");
        }
    }
}
