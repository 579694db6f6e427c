//! Real work instead of sleeping, for testbeds with pinned CPUs: the threads of an engine meet at spinning
//! barriers for every token, and the kernel, not a factor, makes the contention.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::clock;

/// Barriers in one token. Real engines meet once per operation of the graph, hundreds of times; a few dozen
/// already show what a missing core does.
const MEETINGS: usize = 32;

/// How much work a thread does in a microsecond, measured once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Burn {
    threads: usize,
    steps_per_us: u64,
}

impl Burn {
    /// Measures this machine for about 20 ms. The fastest of twenty slices counts: in the others somebody else had
    /// the core.
    pub(crate) fn measure(threads: usize) -> Self {
        let rates = (0..20).map(|_| {
            let begun = clock::monotonic_ns();
            let (mut steps, mut took) = (0, 0);
            while took < 1_000_000 {
                work(5_000);
                steps += 5_000;
                took = clock::monotonic_ns() - begun;
            }
            steps * 1000 / took
        });
        Self { threads: threads.max(1), steps_per_us: rates.max().unwrap_or(1).max(1) }
    }

    /// Burns what takes `alone` when every thread has a core.
    pub(crate) async fn spend(self, alone: Duration) {
        let steps = alone.as_micros() as u64 * self.steps_per_us;
        let burn = move || {
            let arrived = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..self.threads {
                    scope.spawn(|| {
                        for meeting in 1..=MEETINGS {
                            work(steps / MEETINGS as u64);
                            arrived.fetch_add(1, Ordering::SeqCst);
                            while arrived.load(Ordering::SeqCst) < meeting * self.threads {
                                std::hint::spin_loop();
                            }
                        }
                    });
                }
            });
        };
        // The only error is a panic inside, and there is nothing inside that can.
        let _ = tokio::task::spawn_blocking(burn).await;
    }
}

fn work(steps: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..steps {
        state = std::hint::black_box(state.rotate_left(5).wrapping_mul(0x2545_f491_4f6c_dd1d));
    }
}
