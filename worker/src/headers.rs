//! A record's headers in one piece of memory. rdkafka's own are several allocations each, and a worker holds thousands of
//! records with a dozen.

use bytes::{Buf as _, BufMut as _, Bytes};
use rdkafka::message::{Header, Headers, OwnedHeaders};

/// A value's length where the value is Kafka's null.
const NULL: u32 = u32::MAX;
/// What a header takes besides its bytes.
const LENGTHS: usize = 2 * size_of::<u32>();

/// Name and value of each header behind their lengths, in the record's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackedHeaders(Bytes);

impl PackedHeaders {
    /// The bytes that these take.
    pub(crate) fn size(headers: &impl Headers) -> usize {
        let size = |header: Header<'_, &[u8]>| {
            LENGTHS + header.key.len() + header.value.map_or(0, <[u8]>::len)
        };
        headers.iter().map(size).sum()
    }

    /// Writes headers behind what is in the buffer.
    pub(crate) fn pack<'a>(
        buffer: &mut Vec<u8>,
        headers: impl IntoIterator<Item = Header<'a, &'a [u8]>>,
    ) {
        for Header { key, value } in headers {
            buffer.put_u32(length(key.as_bytes()));
            buffer.put_slice(key.as_bytes());
            buffer.put_u32(value.map_or(NULL, length));
            buffer.put_slice(value.unwrap_or_default());
        }
    }

    /// These headers, in memory of their own.
    pub(crate) fn of<'a>(headers: impl IntoIterator<Item = Header<'a, &'a [u8]>>) -> Self {
        let mut packed = Vec::new();
        PackedHeaders::pack(&mut packed, headers);
        PackedHeaders(packed.into())
    }

    /// What was packed.
    pub(crate) fn new(packed: Bytes) -> PackedHeaders {
        PackedHeaders(packed)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Header<'_, &[u8]>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let length = rest.try_get_u32().ok()?;
            let name = rest.split_off(..length as usize)?;
            let value = match rest.try_get_u32().ok()? {
                NULL => None,
                length => Some(rest.split_off(..length as usize)?),
            };
            let key = str::from_utf8(name).ok()?;
            Some(Header { key, value })
        })
    }

    /// As rdkafka takes them, with room for `more`.
    pub(crate) fn unpack(&self, more: usize) -> OwnedHeaders {
        let headers = OwnedHeaders::new_with_capacity(self.iter().count() + more);
        self.iter().fold(headers, OwnedHeaders::insert)
    }
}

/// Kafka's own lengths have 31 bits.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(NULL - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were() {
        let headers = [
            ("a", Some(&b"1"[..])),
            ("", None),
            ("a", Some(b"")),
            ("ü", Some(&[0xff])),
        ]
        .map(|(key, value)| Header { key, value });
        let owned = headers
            .clone()
            .into_iter()
            .fold(OwnedHeaders::new(), OwnedHeaders::insert);
        let mut packed = Vec::new();
        PackedHeaders::pack(&mut packed, owned.iter());
        assert_eq!(packed.len(), PackedHeaders::size(&owned));
        let packed = PackedHeaders::new(packed.into());
        assert_eq!(packed.iter().collect::<Vec<_>>(), headers);
        assert_eq!(packed.unpack(2).iter().collect::<Vec<_>>(), headers);
        assert_eq!(PackedHeaders::default().iter().count(), 0);
    }
}
