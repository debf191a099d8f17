//! Sets of numbers as sorted intervals.

/// A number with a first and a last one.
pub trait Point: Copy + Ord {
    /// The least.
    const MIN: Self;
    /// The greatest.
    const MAX: Self;
    /// The one before; `None` for the least.
    fn before(self) -> Option<Self>;
    /// The one after; `None` for the greatest.
    fn after(self) -> Option<Self>;
}

/// A port. The API has no port 0, so that 1 to 65535 is every port.
impl Point for u16 {
    const MIN: Self = 1;
    const MAX: Self = Self::MAX;
    fn before(self) -> Option<Self> {
        self.checked_sub(1).filter(|it| *it >= <Self as Point>::MIN)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// An IPv4 address.
impl Point for u32 {
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;
    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// An IPv6 address.
impl Point for u128 {
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;
    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// A set of numbers: intervals with both ends included, in order, with a gap between any two. One set is one value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IntervalSet<T>(Vec<(T, T)>);

impl<T> Default for IntervalSet<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Point> IntervalSet<T> {
    /// Every number.
    pub fn all() -> Self {
        Self(vec![(T::MIN, T::MAX)])
    }

    /// From the first to the last, both included; nothing where the last comes before the first.
    pub fn range(first: T, last: T) -> Self {
        [(first, last)].into_iter().collect()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds everything.
    pub fn is_all(&self) -> bool {
        self.0.as_slice() == [(T::MIN, T::MAX)]
    }

    /// The intervals in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (T, T)> {
        self.0.iter().copied()
    }

    /// Whether it holds this number.
    pub fn contains(&self, point: T) -> bool {
        let at = self.0.partition_point(|(first, _)| *first <= point);
        self.0[..at].last().is_some_and(|(_, last)| point <= *last)
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_all() {
            return other.clone();
        }
        if other.is_empty() || self.is_all() {
            return self.clone();
        }
        self.iter().chain(other.iter()).collect()
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.0.as_slice(), other.0.as_slice());
        let mut both = Vec::new();
        while let ([(a_first, a_last), a_rest @ ..], [(b_first, b_last), b_rest @ ..]) = (a, b) {
            let (first, last) = (*a_first.max(b_first), *a_last.min(b_last));
            if first <= last {
                both.push((first, last));
            }
            if a_last < b_last { a = a_rest } else { b = b_rest }
        }
        Self(both)
    }

    /// What is not in it.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(T::MIN);
        for (first, last) in self.iter() {
            if let (Some(from), Some(until)) = (next, first.before())
                && from <= until
            {
                rest.push((from, until));
            }
            next = last.after();
        }
        rest.extend(next.map(|from| (from, T::MAX)));
        Self(rest)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return self.clone();
        }
        self.intersection(&other.complement())
    }

    /// Whether the other holds all of it.
    pub fn is_subset(&self, other: &Self) -> bool {
        // Intervals of a set do not touch, so each of ours must be inside of one of theirs.
        self.iter().all(|(first, last)| {
            let at = other.0.partition_point(|(begin, _)| *begin <= first);
            other.0[..at].last().is_some_and(|(_, end)| last <= *end)
        })
    }
}

/// In any order, overlapping or not; what begins behind its end is nothing.
impl<T: Point> FromIterator<(T, T)> for IntervalSet<T> {
    fn from_iter<I: IntoIterator<Item = (T, T)>>(intervals: I) -> Self {
        let inside = |(first, last): (T, T)| (first.max(T::MIN), last);
        let mut all: Vec<(T, T)> =
            intervals.into_iter().map(inside).filter(|(first, last)| first <= last).collect();
        all.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some((_, end)) if end.after().is_none_or(|after| first <= after) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Sixteen numbers, small enough to try all of them.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    struct Small(u8);

    impl Point for Small {
        const MIN: Self = Self(0);
        const MAX: Self = Self(15);
        fn before(self) -> Option<Self> {
            self.0.checked_sub(1).map(Self)
        }
        fn after(self) -> Option<Self> {
            (self.0 < 15).then(|| Self(self.0 + 1))
        }
    }

    fn sets() -> impl Strategy<Value = IntervalSet<Small>> {
        let one = (0..16u8, 0..16u8).prop_map(|(first, last)| (Small(first), Small(last)));
        vec(one, 0..5).prop_map(|it| it.into_iter().collect())
    }

    fn bits(set: &IntervalSet<Small>) -> u16 {
        (0..16).filter(|it| set.contains(Small(*it))).fold(0, |bits, it| bits | 1 << it)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_algebra_is_that_of_bits(a in sets(), b in sets()) {
            prop_assert_eq!(bits(&a.union(&b)), bits(&a) | bits(&b));
            prop_assert_eq!(bits(&a.intersection(&b)), bits(&a) & bits(&b));
            prop_assert_eq!(bits(&a.difference(&b)), bits(&a) & !bits(&b));
            prop_assert_eq!(bits(&a.complement()), !bits(&a));
            prop_assert_eq!(a.is_subset(&b), bits(&a) & !bits(&b) == 0);
            prop_assert_eq!(a.is_empty(), bits(&a) == 0);
            prop_assert_eq!(a.is_all(), bits(&a) == u16::MAX);
        }

        #[test]
        fn one_set_is_one_value(a in sets(), b in sets()) {
            prop_assert_eq!(a == b, bits(&a) == bits(&b));
            prop_assert_eq!(a.complement().complement(), a.clone());
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a);
        }
    }

    #[test]
    fn the_last_number_is_no_edge_to_fall_off() {
        let top = IntervalSet::range(u128::MAX, u128::MAX);
        assert_eq!(top.complement(), IntervalSet::range(0, u128::MAX - 1));
        assert_eq!(top.complement().union(&top), IntervalSet::all());
        assert!(IntervalSet::<u32>::default().complement().is_all());
    }

    #[test]
    fn there_is_no_port_0() {
        assert_eq!(IntervalSet::<u16>::range(0, u16::MAX), IntervalSet::all());
        assert!(IntervalSet::<u16>::range(0, 0).is_empty());
        assert_eq!(IntervalSet::<u16>::range(2, u16::MAX).complement(), IntervalSet::range(1, 1));
    }
}
