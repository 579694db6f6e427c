//! Sequences and texts with a bound in their type, so that nothing that arrives can be larger than its field.
//!
//! `codec.rs` limits a whole frame; these types limit each field, and reject a declared length before they
//! reserve memory for it (`security.md` §5.1).

use std::{borrow::Borrow, fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};

/// A list of at most `MAX` elements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct List<T, const MAX: usize>(Vec<T>);

/// A UTF-8 text of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MAX: usize>(String);

/// Text of a prompt or an answer, or one that may quote them: it has no `Display`, and `Debug` shows its length only.
/// On the wire it is a [`Text`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Content<const MAX: usize>(Text<MAX>);

/// Opaque bytes, at most `MAX`; shown by their length only, since prompts and answers travel in them.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob<const MAX: usize>(Vec<u8>);

/// Says that a value is larger than its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} is more than the bound of {max}")]
pub struct TooLong {
    /// How long the value is, in elements or bytes.
    pub len: usize,
    /// The bound of its field.
    pub max: usize,
}

fn bounded(len: usize, max: usize) -> Result<(), TooLong> {
    if len > max { Err(TooLong { len, max }) } else { Ok(()) }
}

impl<T, const MAX: usize> List<T, MAX> {
    /// The bound.
    pub const MAX: usize = MAX;

    /// Takes the values.
    ///
    /// # Errors
    /// When there are more than `MAX`.
    pub fn new(values: Vec<T>) -> Result<Self, TooLong> {
        bounded(values.len(), MAX)?;
        Ok(Self(values))
    }

    /// Takes the first `MAX` values and says whether any were left out.
    #[must_use]
    pub fn cut(mut values: Vec<T>) -> (Self, bool) {
        let cut = values.len() > MAX;
        values.truncate(MAX);
        (Self(values), cut)
    }

    /// Gives the values back.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }

    /// Applies a function to every element; the length, and so the bound, stays.
    #[must_use]
    pub fn map<U>(&self, f: impl FnMut(&T) -> U) -> List<U, MAX> {
        List(self.0.iter().map(f).collect())
    }
}

impl<const MAX: usize> Text<MAX> {
    /// Takes the text.
    ///
    /// # Errors
    /// When it has more than `MAX` bytes.
    pub fn new(text: impl Into<String>) -> Result<Self, TooLong> {
        let text = text.into();
        bounded(text.len(), MAX)?;
        Ok(Self(text))
    }

    /// Takes as many whole characters as fit into `MAX` bytes.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(MAX)].to_owned())
    }
}

impl<const MAX: usize> Blob<MAX> {
    /// The bound.
    pub const MAX: usize = MAX;

    /// Takes the bytes.
    ///
    /// # Errors
    /// When there are more than `MAX`.
    pub fn new(bytes: Vec<u8>) -> Result<Self, TooLong> {
        bounded(bytes.len(), MAX)?;
        Ok(Self(bytes))
    }

    /// Gives the bytes back.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const MAX: usize> Default for Text<MAX> {
    fn default() -> Self {
        Self(String::new())
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Borrow<str> for Text<MAX> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Deref for Blob<MAX> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<T: fmt::Debug, const MAX: usize> fmt::Debug for List<T, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> Content<MAX> {
    /// Cuts at the last character that ends within `MAX` bytes.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        Self(Text::cut(text))
    }
}

impl<const MAX: usize> From<Text<MAX>> for Content<MAX> {
    fn from(text: Text<MAX>) -> Self {
        Self(text)
    }
}

impl<const MAX: usize> Deref for Content<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Content<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes of content>", self.0.len())
    }
}

impl<const MAX: usize> fmt::Debug for Blob<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl<T: Serialize, const MAX: usize> Serialize for List<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<const MAX: usize> Serialize for Blob<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} elements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                // A declared length above the bound is refused before anything is reserved.
                bounded(seq.size_hint().unwrap_or(0), MAX).map_err(de::Error::custom)?;
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    bounded(values.len() + 1, MAX).map_err(de::Error::custom)?;
                    values.push(value);
                }
                Ok(List(values))
            }
        }
        deserializer.deserialize_seq(Elements(std::marker::PhantomData))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Characters<const MAX: usize>;
        impl<const MAX: usize> Visitor<'_> for Characters<MAX> {
            type Value = Text<MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a text of at most {MAX} bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Text::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Characters)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Blob<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<const MAX: usize>;
        impl<const MAX: usize> Visitor<'_> for Bytes<MAX> {
            type Value = Blob<MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                bounded(bytes.len(), MAX).map_err(E::custom)?;
                Ok(Blob(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_the_bound_is_refused_and_the_bound_itself_is_not() {
        assert!(List::<u8, 2>::new(vec![1, 2]).is_ok());
        assert_eq!(List::<u8, 2>::new(vec![1, 2, 3]), Err(TooLong { len: 3, max: 2 }));
        assert!(Text::<2>::new("ab").is_ok());
        assert!(Text::<2>::new("abc").is_err());
    }

    #[test]
    fn a_text_is_cut_at_a_whole_character() {
        assert_eq!(&*Text::<4>::cut("aéé"), "aé");
    }

    #[test]
    fn bytes_show_their_length_and_not_their_content() {
        assert_eq!(format!("{:?}", Blob::<9>::new(b"secret".to_vec()).unwrap()), "<6 bytes>");
    }
}
