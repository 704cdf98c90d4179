//! Where a payload is wrong, as a JSON pointer (RFC 6901).

use crate::{DecodeError, MoneyError};

impl DecodeError {
    /// The place in the payload that the error is about; empty is the whole payload.
    pub fn pointer(&self) -> String {
        match self {
            DecodeError::Field { field } => format!("/{field}"),
            DecodeError::Refund => "/refund_id".to_owned(),
            DecodeError::Money { parent, error } => {
                let field = match error {
                    MoneyError::UnknownCurrency(_) => "currency",
                    MoneyError::NotDecimal(_)
                    | MoneyError::TooPrecise { .. }
                    | MoneyError::OutOfRange(_) => "amount",
                };
                format!("{parent}/{field}")
            }
            DecodeError::TooLong(_)
            | DecodeError::Json(_)
            | DecodeError::NotUtf8
            | DecodeError::NotAnObject
            | DecodeError::TooDeep
            | DecodeError::LoneSurrogate
            | DecodeError::NulEscape => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_place() {
        let too_large = |parent| DecodeError::money(parent)(MoneyError::OutOfRange("1".into()));
        let unknown = DecodeError::money("")(MoneyError::UnknownCurrency("XXZ".into()));
        let field = DecodeError::Field { field: "order_id" };
        assert_eq!(field.pointer(), "/order_id");
        assert_eq!(too_large("/meta").pointer(), "/meta/amount");
        assert_eq!(too_large("").pointer(), "/amount");
        assert_eq!(unknown.pointer(), "/currency");
        assert_eq!(DecodeError::NotUtf8.pointer(), "");
    }
}
