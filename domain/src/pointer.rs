//! Where a payload is wrong, as a JSON pointer (RFC 6901).

use crate::{DecodeError, MoneyError, Source};

impl DecodeError {
    /// The place in a payload of `source` that the error is about; empty is the whole payload.
    pub fn pointer(&self, source: Source) -> String {
        match self {
            DecodeError::Field { field } => format!("/{field}"),
            DecodeError::Money(error) => {
                let parent = match source {
                    Source::Orders => "/meta",
                    Source::Chargebacks => "",
                };
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
        let too_large = || DecodeError::Money(MoneyError::OutOfRange("1".into()));
        let unknown = DecodeError::Money(MoneyError::UnknownCurrency("XXZ".into()));
        let field = DecodeError::Field { field: "order_id" };
        assert_eq!(field.pointer(Source::Orders), "/order_id");
        assert_eq!(too_large().pointer(Source::Orders), "/meta/amount");
        assert_eq!(too_large().pointer(Source::Chargebacks), "/amount");
        assert_eq!(unknown.pointer(Source::Chargebacks), "/currency");
        assert_eq!(DecodeError::NotUtf8.pointer(Source::Orders), "");
    }
}
