//! A partition of numbered things that only grows together.

/// Groups of `0..n`, each named by its smallest member.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    of: Vec<usize>,
    members: Vec<Vec<usize>>,
}

impl Groups {
    /// Everything on its own.
    pub(super) fn singletons(n: usize) -> Self {
        Self { of: (0..n).collect(), members: (0..n).map(|one| vec![one]).collect() }
    }

    /// The name of the group of `one`.
    pub(super) fn of(&self, one: usize) -> usize {
        self.of[one]
    }

    /// The members of the group of `one`, sorted.
    pub(super) fn members(&self, one: usize) -> &[usize] {
        &self.members[self.of[one]]
    }

    /// Makes the groups of two things one.
    pub(super) fn join(&mut self, a: usize, b: usize) {
        let (keep, gone) = (self.of[a].min(self.of[b]), self.of[a].max(self.of[b]));
        if keep == gone {
            return;
        }
        let moved = std::mem::take(&mut self.members[gone]);
        for &member in &moved {
            self.of[member] = keep;
        }
        let members = &mut self.members[keep];
        let in_order = members.last() < moved.first();
        members.extend(moved);
        if !in_order {
            members.sort_unstable();
        }
    }

    /// All groups in the order of their names.
    pub(super) fn all(&self) -> impl Iterator<Item = &[usize]> {
        self.members.iter().filter(|members| !members.is_empty()).map(Vec::as_slice)
    }

    /// Every pair with one member in the group of `a` and one in the group of `b`.
    pub(super) fn across(&self, a: usize, b: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let others = self.members(b);
        self.members(a).iter().flat_map(move |&one| others.iter().map(move |&other| (one, other)))
    }
}
