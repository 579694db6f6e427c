//! How long work takes on devices that others use too: token times are absolute, the factor of contention is read
//! anew for every token, and long work is cut into slices that each have their own factor.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Settings;
use super::burn::Burn;
use super::clock;
use super::devices::Activity;
use super::text::Draw;

/// The longest time for which one factor of contention counts while loading or reading a prompt.
const SLICE: Duration = Duration::from_millis(10);

/// How far token times may lag behind before they are counted from now on: after a stopped process, the rest of
/// an answer must not come in one burst.
const MAX_LAG: Duration = Duration::from_secs(1);

/// Occupied devices and the time that work takes on them.
#[derive(Debug)]
pub(crate) struct Pace {
    activities: Vec<Activity>,
    next: Instant,
    burn: Option<Burn>,
    jitter: Option<(Draw, u64)>,
    spent: u64,
}

impl Pace {
    /// Occupies the devices of the install; `serial` makes its jitter its own.
    pub(crate) fn begin(settings: &Settings, burn: Option<Burn>, serial: u64, foreign: bool) -> Self {
        let devices = settings.devices.iter();
        let jitter = (settings.jitter > 0).then(|| {
            let key: &[&[u8]] = &[b"jitter", &settings.seed.to_le_bytes(), &serial.to_le_bytes()];
            (Draw::new(key), settings.jitter.min(99))
        });
        Self {
            activities: devices.map(|device| device.begin(&settings.name, foreign)).collect(),
            next: clock::now(),
            burn,
            jitter,
            spent: 0,
        }
    }

    /// Takes as long as work of this length takes now, in slices when it is long. The end is an absolute time, so
    /// that small errors do not add up.
    pub(crate) async fn spend(&mut self, alone: Duration) {
        let mut left = alone;
        while !left.is_zero() {
            left -= self.slice(left).await;
        }
    }

    /// A first part of the work, short enough for one factor; returns how much of it.
    pub(crate) async fn slice(&mut self, alone: Duration) -> Duration {
        let part = alone.min(SLICE);
        if let Some(burn) = self.burn {
            self.factor();
            burn.spend(part).await;
            return part;
        }
        let now = clock::now();
        if self.next + MAX_LAG < now {
            self.next = now;
        }
        let factor = self.factor() * self.jitter();
        self.next += part.mul_f64(factor);
        sleep_until(self.next).await;
        part
    }

    /// Counts from now on: what went before was waiting, not work.
    pub(crate) fn restart(&mut self) {
        self.next = clock::now();
    }

    /// The worst of the devices.
    fn factor(&mut self) -> f64 {
        self.activities.iter_mut().map(Activity::factor).fold(1.0, f64::max)
    }

    fn jitter(&mut self) -> f64 {
        let Some((draw, percent)) = &self.jitter else { return 1.0 };
        self.spent += 1;
        let unit = draw.number(self.spent) as f64 / u64::MAX as f64 * 2.0 - 1.0;
        1.0 + unit * *percent as f64 / 100.0
    }
}
