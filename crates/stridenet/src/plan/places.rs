//! Where a segment's activations lie.

use super::segment::Place;

/// An activation inside a segment; the first is the segment's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub(super) usize);

/// What a step reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reads {
    pub(super) input: Value,
    /// A gate's weights.
    pub(super) weights: Option<Value>,
    /// What is added.
    pub(super) residual: Option<Value>,
}

impl From<Value> for Reads {
    fn from(input: Value) -> Self {
        Reads { input, weights: None, residual: None }
    }
}

impl Reads {
    fn all(self) -> impl Iterator<Item = Value> {
        [Some(self.input), self.weights, self.residual].into_iter().flatten()
    }
}

/// What a step reads and writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) reads: Reads,
    pub(super) output: Value,
}

/// Where the activations of a segment's steps lie.
#[derive(Debug)]
pub(super) struct Places {
    /// Each activation's cell; those with the same one lie in the same place.
    cells: Vec<usize>,
    /// Each cell's place.
    places: Vec<Option<Place>>,
    /// Values an image of each buffer.
    pub(super) slots: Vec<usize>,
}

impl Places {
    /// Places for activations of so many values an image, in few and small buffers. The segment's output serves as one until its
    /// own first value is written.
    pub(super) fn new(lens: &[usize], steps: &[Access], output: Value) -> Self {
        let cells = cells(lens.len(), steps);
        let result = cells[output.0];
        let mut all = Places { places: vec![None; lens.len()], slots: Vec::new(), cells };
        all.places[0] = Some(Place::Input);
        all.places[result] = Some(Place::Output { len: lens[output.0] });
        let last_uses: Vec<Option<usize>> = (0..lens.len()).map(|cell| all.last_use(cell, steps)).collect();
        let begins = steps.iter().position(|step| all.cells[step.output.0] == result);
        // What the output holds that is not the segment's, and the buffers that hold nothing any more.
        let mut guest = None;
        let mut free: Vec<usize> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let (cell, need) = (all.cells[step.output.0], lens[step.output.0]);
            if all.places[cell].is_none() {
                let leaves = Some(index) < begins && last_uses[cell] < begins;
                all.places[cell] = Some(if leaves && guest.is_none() && need <= lens[output.0] {
                    guest = Some(cell);
                    Place::Output { len: need }
                } else {
                    Place::Slot { slot: all.take(&mut free, need), len: need }
                });
            }
            for read in step.reads.all().map(|value| all.cells[value.0]) {
                if last_uses[read] != Some(index) || read == cell {
                    continue;
                }
                guest = guest.filter(|&guest| guest != read);
                if let Some(Place::Slot { slot, .. }) = all.places[read]
                    && !free.contains(&slot)
                {
                    free.push(slot);
                }
            }
        }
        all
    }

    /// Where an activation lies.
    ///
    /// # Panics
    /// When no step writes it.
    pub(super) fn of(&self, value: Value) -> Place {
        self.places[self.cells[value.0]].expect("every activation has a place")
    }

    /// The last step that reads a cell.
    fn last_use(&self, cell: usize, steps: &[Access]) -> Option<usize> {
        steps.iter().rposition(|step| step.reads.all().any(|value| self.cells[value.0] == cell))
    }

    /// The free buffer that fits best, or else the largest one, which grows: better than a new one.
    fn take(&mut self, free: &mut Vec<usize>, need: usize) -> usize {
        let fitting = free.iter().copied().filter(|&slot| self.slots[slot] >= need);
        let best = fitting.min_by_key(|&slot| self.slots[slot]);
        let slot = best.or_else(|| free.iter().copied().max_by_key(|&slot| self.slots[slot]));
        let Some(slot) = slot else {
            self.slots.push(need);
            return self.slots.len() - 1;
        };
        self.slots[slot] = self.slots[slot].max(need);
        free.retain(|&other| other != slot);
        slot
    }
}

/// A cell for each of `values` activations. A sum with a residual that nobody else reads any more takes the residual's; the input
/// is not the segment's to change.
fn cells(values: usize, steps: &[Access]) -> Vec<usize> {
    let mut cells: Vec<usize> = (0..values).collect();
    for (index, step) in steps.iter().enumerate() {
        let Some(residual) = step.reads.residual else { continue };
        let read_later =
            steps[index + 1..].iter().any(|later| later.reads.all().any(|read| read == residual));
        let read_besides = step.reads.all().filter(|&read| read == residual).count() > 1;
        if cells[residual.0] != 0 && !read_later && !read_besides {
            cells[step.output.0] = cells[residual.0];
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn reads(input: usize, residual: Option<usize>) -> Reads {
        Reads { residual: residual.map(Value), ..Value(input).into() }
    }

    fn steps(of: &[Reads]) -> Vec<Access> {
        let outputs = (1..).map(Value);
        of.iter().zip(outputs).map(|(&reads, output)| Access { reads, output }).collect()
    }

    /// What lies in a place, whatever part of it is used.
    fn whole(place: Place) -> Place {
        match place {
            Place::Input => Place::Input,
            Place::Output { .. } => Place::Output { len: 0 },
            Place::Slot { slot, .. } => Place::Slot { slot, len: 0 },
        }
    }

    #[test]
    fn the_output_serves_as_a_buffer_until_a_projection_is_written_there() {
        // Two blocks: a wide value and a narrow one, the projection of the input, the sum; then two narrow ones, and the sum.
        let lens = [80, 40, 10, 40, 40, 10, 10, 40];
        let block = [reads(0, None), reads(1, None), reads(0, None), reads(2, Some(3))];
        let next = [reads(4, None), reads(5, None), reads(6, Some(4))];
        let places = Places::new(&lens, &steps(&[block.as_slice(), &next].concat()), Value(7));
        let output = Place::Output { len: 40 };
        for value in [1, 3, 4, 7] {
            assert_eq!(places.of(Value(value)), output, "{value}");
        }
        assert_eq!(places.slots, [10, 10]);
        // A projection that comes first leaves no time for that.
        let block = [reads(0, None), reads(0, None), reads(2, None), reads(3, Some(1))];
        let places = Places::new(&[80, 40, 40, 10, 40], &steps(&block), Value(4));
        assert_eq!((places.of(Value(1)), places.of(Value(2))), (output, Place::Slot { slot: 0, len: 40 }));
        assert_eq!(places.slots, [40, 10]);
    }

    #[test]
    fn what_is_read_later_is_not_overwritten() {
        let mut state = 1u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        for _ in 0..2000 {
            let count = 1 + below(9);
            let lens: Vec<usize> = (0..=count).map(|_| 1 + below(4)).collect();
            let all: Vec<Reads> = (0..count)
                .map(|step| {
                    // A sum has the size of what is added.
                    let like = |&value: &usize| lens[value] == lens[step + 1];
                    let residual = Some(below(step + 1)).filter(like);
                    let weights = Some(below(2 * step + 2)).filter(|&value| value <= step).map(Value);
                    Reads { weights, ..reads(step.saturating_sub(below(3)), residual) }
                })
                .collect();
            let steps = steps(&all);
            let places = Places::new(&lens, &steps, Value(count));
            assert_eq!(places.of(Value(count)), Place::Output { len: lens[count] });
            let mut held = HashMap::from([(Place::Input, Value(0))]);
            for Access { reads, output } in steps {
                let place = places.of(output);
                for value in reads.all() {
                    let read = places.of(value);
                    assert_eq!(held.get(&whole(read)), Some(&value), "{lens:?} {all:?} {places:?}");
                }
                // Only a sum may replace what it reads, the residual alone.
                for value in [Some(reads.input), reads.weights].into_iter().flatten() {
                    assert_ne!(whole(places.of(value)), whole(place), "{lens:?} {all:?} {places:?}");
                }
                match place {
                    Place::Input => panic!("{output:?} replaces the input: {all:?}"),
                    Place::Output { len } => assert!(len <= lens[count]),
                    Place::Slot { slot, len } => assert!(len <= places.slots[slot]),
                }
                held.insert(whole(place), output);
            }
            assert_eq!(held[&Place::Output { len: 0 }], Value(count));
        }
    }
}
