//! JSON as a front door takes it: RFC 8259 without what two readers may understand differently, or a database refuses.
//!
//! What is wrong is named by its place, a JSON pointer (RFC 6901).

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The longest name of a member, in bytes; it also bounds the pointers.
const NAME_BYTES_MAX: usize = 255;

/// What a document may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JsonLimits {
    /// How many objects and arrays may be open at one place.
    pub(crate) depth_max: usize,
    /// The longest string.
    pub(crate) string_bytes_max: usize,
}

/// What is wrong with a payload, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// `None`: no JSON at all, so it has no places.
    pub(crate) pointer: Option<String>,
    /// For people; it does not quote the payload.
    pub(crate) sentence: String,
}

/// With its place in front.
impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_deref() {
            Some(pointer) if !pointer.is_empty() => write!(f, "{pointer}: {}", self.sentence),
            Some(_) | None => f.write_str(&self.sentence),
        }
    }
}

impl Flaw {
    pub(crate) fn at(pointer: impl Into<String>, sentence: impl Into<String>) -> Flaw {
        Flaw {
            pointer: Some(pointer.into()),
            sentence: sentence.into(),
        }
    }

    fn malformed(sentence: impl Into<String>) -> Flaw {
        Flaw {
            pointer: None,
            sentence: sentence.into(),
        }
    }
}

/// Reads a document.
pub(crate) fn parse(bytes: &[u8], limits: JsonLimits) -> Result<Value, Flaw> {
    let text = std::str::from_utf8(bytes).map_err(|_| Flaw::malformed("the body is not UTF-8"))?;
    let mut place = Place {
        limits,
        path: Vec::new(),
        own: None,
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = place
        .seed()
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| match place.own.take() {
        Some(sentence) => Flaw::at(place.pointer(), sentence),
        // Not by the error's category: serde_json calls a number over its range a syntax error.
        None if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => {
            Flaw::at(place.pointer(), error.to_string())
        }
        None => Flaw::malformed(format!("the body is not JSON: {error}")),
    })
}

enum Step {
    Member(String),
    Element(usize),
}

/// Where the reader stands; after an error, where it failed.
struct Place {
    limits: JsonLimits,
    path: Vec<Step>,
    /// What we, and not serde_json, found wrong.
    own: Option<String>,
}

impl Place {
    fn seed(&mut self) -> Reader<'_> {
        Reader(self)
    }

    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for step in &self.path {
            pointer.push('/');
            match step {
                Step::Member(name) => {
                    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                }
                Step::Element(index) => pointer.push_str(&index.to_string()),
            }
        }
        pointer
    }

    fn fail<E: serde::de::Error>(&mut self, sentence: String) -> E {
        self.own = Some(sentence);
        E::custom("refused")
    }

    fn text<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        if text.len() > self.limits.string_bytes_max {
            let max = self.limits.string_bytes_max;
            Err(self.fail(format!("the string has more than {max} bytes")))
        } else if text.contains('\0') {
            Err(self.fail("the string holds \\u0000, which cannot be stored".to_owned()))
        } else {
            Ok(())
        }
    }

    fn open<E: serde::de::Error>(&mut self) -> Result<(), E> {
        let max = self.limits.depth_max;
        if self.path.len() < max {
            Ok(())
        } else {
            Err(self.fail(format!("the body is nested deeper than {max} levels")))
        }
    }
}

struct Reader<'p>(&'p mut Place);

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.0.text(text)?;
        Ok(text.into())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        self.0.text(&text)?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let place = self.0;
        place.open()?;
        let mut elements = Vec::new();
        loop {
            // Pushed before the element is read and popped after, so that an error leaves its place behind.
            place.path.push(Step::Element(elements.len()));
            let element = seq.next_element_seed(place.seed())?;
            place.path.pop();
            match element {
                Some(element) => elements.push(element),
                None => return Ok(Value::Array(elements)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let place = self.0;
        place.open()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > NAME_BYTES_MAX {
                let sentence = format!("a member's name has more than {NAME_BYTES_MAX} bytes");
                return Err(place.fail(sentence));
            }
            if name.contains('\0') {
                let sentence = "a member's name holds \\u0000, which cannot be stored".to_owned();
                return Err(place.fail(sentence));
            }
            let doubled = members.contains_key(&name);
            place.path.push(Step::Member(name));
            if doubled {
                return Err(place.fail("the member comes twice".to_owned()));
            }
            let value = map.next_value_seed(place.seed())?;
            let Some(Step::Member(name)) = place.path.pop() else {
                return Err(A::Error::custom("the path is lost"));
            };
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: JsonLimits = JsonLimits {
        depth_max: 32,
        string_bytes_max: 16,
    };

    /// What is wrong, as `pointer: sentence`; `-` is no JSON, and `taken` is nothing.
    fn check(json: impl AsRef<[u8]>, expect: &str) {
        let json = json.as_ref();
        let found = match parse(json, LIMITS) {
            Ok(_) => "taken".to_owned(),
            Err(Flaw { pointer, sentence }) => {
                format!("{}: {sentence}", pointer.as_deref().unwrap_or("-"))
            }
        };
        let start = String::from_utf8_lossy(&json[..json.len().min(60)]);
        assert!(found.starts_with(expect), "{start}: {found}");
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_refused_where_it_stands() {
        check(r#"{"a":1,"b":{"c":[1,2.5,null,true,"x"]}}"#, "taken");
        check(r#"{"a":1,"a":1}"#, "/a: the member comes twice");
        check(r#"{"a":1,"\u0061":1}"#, "/a: the member comes twice");
        check(
            r#"{"m":[{},{"x/y~":{"d":1,"d":2}}]}"#,
            "/m/1/x~1y~0/d: the member comes twice",
        );
        check(r#"{"a":{"b":1},"c":{"b":1}}"#, "taken");
        check(
            r#"{"a":["ok","b\u0000"]}"#,
            "/a/1: the string holds \\u0000",
        );
        check(r#"{"a\u0000":1}"#, ": a member's name holds \\u0000");
        check(r#"{"a":"\\u0000"}"#, "taken");
    }

    #[test]
    fn numbers_that_no_reader_can_hold_are_refused() {
        check(r#"{"a":1e400}"#, "/a: number out of range");
        check(r#"{"a":[0,-1e999999]}"#, "/a/1: number out of range");
        check(
            format!(r#"{{"a":1{}}}"#, "0".repeat(400)),
            "/a: number out of range",
        );
        check(r#"{"a":1e-400}"#, "taken");
        check(r#"{"a":18446744073709551616}"#, "taken");
        check(r#"{"a":NaN}"#, "-: the body is not JSON");
        check(r#"{"a":01}"#, "-: the body is not JSON");
        check(r#"{"a":+1}"#, "-: the body is not JSON");
    }

    #[test]
    fn text_that_is_none_is_refused() {
        check(b"{\"a\":\"\xff\"}", "-: the body is not UTF-8");
        check(b"{\"a\":\"\xed\xa0\x80\"}", "-: the body is not UTF-8");
        for lone in [r"\ud800", r"\ud800x", r"\ud800\ud800", r"\udc00"] {
            check(format!(r#"{{"a":"{lone}"}}"#), "/a: ");
        }
        check(r#"{"a":"\ud83d\ude00"}"#, "taken");
        check("{\"a\":\"\n\"}", "-: the body is not JSON");
        check(format!(r#"{{"a":"{}"}}"#, "x".repeat(16)), "taken");
        check(
            format!(r#"{{"a":"{}"}}"#, "x".repeat(17)),
            "/a: the string has more than 16",
        );
        check(
            format!(r#"{{"{}":1}}"#, "x".repeat(256)),
            ": a member's name has more than 255",
        );
    }

    #[test]
    fn depth_is_bounded_and_what_is_no_json_has_no_place() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        check(deep(32), "taken");
        check(
            deep(33),
            &format!("{}: the body is nested deeper", "/0".repeat(32)),
        );
        check(
            deep(10_000),
            &format!("{}: the body is nested deeper", "/0".repeat(32)),
        );
        check(
            "[".repeat(100_000),
            &format!("{}: the body is nested", "/0".repeat(32)),
        );
        for text in [
            "",
            " ",
            "{",
            "{}{}",
            "{},",
            "'a'",
            "\u{feff}{}",
            r#"{"a":1,}"#,
        ] {
            check(text, "-: the body is not JSON");
        }
    }
}
