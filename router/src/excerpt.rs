//! [`Excerpt`]: the start of a bad key, kept inside the error.

use std::fmt;

/// How many bytes of a key an error keeps. A canonical uuid (36) and an `i64` (20) fit whole.
const EXCERPT_BYTES_MAX: usize = 40;

/// The first bytes of a text that was refused, so that an error can show it.
///
/// It lives inline, because a partitioner must be able to refuse a key inside librdkafka's callback
/// without asking the allocator, and because a megabyte of bad key must not become a megabyte of
/// log line. Shown escaped and in double quotes, with `...` after it if it was cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    bytes: [u8; EXCERPT_BYTES_MAX],
    kept: u8,
    cut: bool,
}

impl Excerpt {
    pub(crate) fn of(text: &str) -> Excerpt {
        let kept = text.floor_char_boundary(EXCERPT_BYTES_MAX);
        let mut bytes = [0; EXCERPT_BYTES_MAX];
        bytes[..kept].copy_from_slice(&text.as_bytes()[..kept]);
        Excerpt {
            bytes,
            kept: u8::try_from(kept).unwrap_or(u8::MAX),
            cut: kept < text.len(),
        }
    }

    /// The text that was kept.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Cut at a character's boundary, so it is always UTF-8.
        std::str::from_utf8(&self.bytes[..usize::from(self.kept)]).unwrap_or_default()
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dots = if self.cut { "..." } else { "" };
        write!(f, "\"{}\"{dots}", self.as_str().escape_debug())
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
