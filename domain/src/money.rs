//! Money: an integer of minor units with its currency.

use iso_currency::Currency;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

/// An amount in minor units (cents for EUR, whole yen for JPY) of an ISO 4217 currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Money {
    /// Minor units.
    pub minor: i64,
    /// The ISO 4217 currency.
    pub currency: Currency,
}

/// Why a text is not an amount of money.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MoneyError {
    /// No ISO 4217 currency has this code.
    #[error("currency {0:?} is not an ISO 4217 code such as EUR")]
    UnknownCurrency(String),
    /// The text is not a decimal number.
    #[error("amount {0:?} is not a decimal number")]
    NotDecimal(String),
    /// The amount has more decimals than the currency has minor digits.
    #[error("amount {amount} has more than the {digits} decimals of {currency}")]
    TooPrecise {
        /// The amount as it was given.
        amount: String,
        /// How many decimals the currency has.
        digits: u16,
        /// The currency's code.
        currency: &'static str,
    },
    /// The amount is negative or over `i64::MAX` minor units.
    #[error("amount {0} is negative or too large")]
    OutOfRange(String),
}

impl Money {
    /// Reads an amount of **major** units from decimal text, exactly: `"12.34"` EUR is 1234 minor units.
    ///
    /// # Errors
    /// [`MoneyError`] where the text is no decimal, or not a whole, non-negative count of minor units.
    pub fn parse_major(amount: &str, currency: &str) -> Result<Self, MoneyError> {
        let currency = parse_currency(currency)?;
        let digits = currency.exponent().unwrap_or(0);
        // A JSON number may stand in scientific notation.
        let decimal = if amount.contains(['e', 'E']) {
            Decimal::from_scientific(amount)
        } else {
            Decimal::from_str_exact(amount)
        }
        .map_err(|_| MoneyError::NotDecimal(amount.to_owned()))?;
        let out_of_range = || MoneyError::OutOfRange(amount.to_owned());
        let minor = Decimal::from(10_u64.pow(u32::from(digits)))
            .checked_mul(decimal)
            .ok_or_else(out_of_range)?;
        if minor.fract() != Decimal::ZERO {
            return Err(MoneyError::TooPrecise {
                amount: amount.to_owned(),
                digits,
                currency: currency.code(),
            });
        }
        let minor = minor
            .to_i64()
            .filter(|minor| *minor >= 0)
            .ok_or_else(out_of_range)?;
        Ok(Money { minor, currency })
    }

    /// Reads an amount of **minor** units.
    ///
    /// # Errors
    /// [`MoneyError`] where the currency is unknown or the amount negative.
    pub fn from_minor(minor: i64, currency: &str) -> Result<Self, MoneyError> {
        let currency = parse_currency(currency)?;
        if minor < 0 {
            return Err(MoneyError::OutOfRange(minor.to_string()));
        }
        Ok(Money { minor, currency })
    }
}

fn parse_currency(code: &str) -> Result<Currency, MoneyError> {
    Currency::from_code(code).ok_or_else(|| MoneyError::UnknownCurrency(code.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_text_becomes_minor_units_exactly() {
        for (amount, currency, minor) in [
            ("12.34", "EUR", 1234),
            ("0.1", "USD", 10),
            ("1000", "JPY", 1000),
            ("1.234", "KWD", 1234),
            ("1.2e2", "EUR", 12_000),
            ("12.340", "EUR", 1234),
            ("92233720368547758.07", "EUR", i64::MAX),
        ] {
            assert_eq!(
                Money::parse_major(amount, currency).unwrap().minor,
                minor,
                "{amount} {currency}"
            );
        }
    }

    #[test]
    fn what_is_not_an_exact_amount_is_refused_by_name() {
        assert!(matches!(
            Money::parse_major("1.005", "EUR"),
            Err(MoneyError::TooPrecise { .. })
        ));
        assert!(matches!(
            Money::parse_major("1.5", "JPY"),
            Err(MoneyError::TooPrecise { .. })
        ));
        assert!(matches!(
            Money::parse_major("-1", "EUR"),
            Err(MoneyError::OutOfRange(_))
        ));
        assert!(matches!(
            Money::parse_major("92233720368547758.08", "EUR"),
            Err(MoneyError::OutOfRange(_))
        ));
        assert!(matches!(
            Money::parse_major("ten", "EUR"),
            Err(MoneyError::NotDecimal(_))
        ));
        assert!(matches!(
            Money::parse_major("1", "eur"),
            Err(MoneyError::UnknownCurrency(_))
        ));
        assert!(matches!(
            Money::from_minor(-1, "EUR"),
            Err(MoneyError::OutOfRange(_))
        ));
    }
}
