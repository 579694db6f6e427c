//! Time: what installs on one device cost each other, and what the witness says about it.

use super::*;

const CHUNKS: u64 = 12;
const TOKENS: u64 = 32;

/// Seconds for 12 chunks of 32 tokens on two installs: one after the other on the first, then spread over both.
#[expect(clippy::disallowed_methods, reason = "a test of time reads the paused clock")]
async fn sequential_and_spread(one: &Double, two: &Double) -> (f64, f64) {
    let clock = tokio::time::Instant::now;
    let begun = clock();
    for _ in 0..CHUNKS {
        one.work(0, TOKENS).await;
    }
    let sequential = (clock() - begun).as_secs_f64();
    let begun = clock();
    let half = async |double: &Double| {
        for _ in 0..CHUNKS / 2 {
            double.work(0, TOKENS).await;
        }
    };
    tokio::join!(half(one), half(two));
    (sequential, (clock() - begun).as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn twelve_chunks_on_two_installs_take_what_was_measured() {
    for (profile, expected) in
        [(Some(Profile::Oversubscribed), 2.4), (Some(Profile::TimeSliced), 1.07), (None, 0.5)]
    {
        let (first, second) = match profile {
            Some(profile) => {
                let shared = Device::new("cpu0", profile);
                (shared.clone(), shared)
            }
            None => (Device::from("cpu0"), Device::from("cpu1")),
        };
        let one = Double::builder().model("m").device(&first).start().await;
        let two = Double::builder().model("m").device(&second).start().await;
        let (sequential, spread) = sequential_and_spread(&one, &two).await;
        let alone = (CHUNKS * TOKENS) as f64 * 0.002;
        assert!((sequential / alone - 1.0).abs() < 0.05, "alone {sequential} of {alone} s");
        let ratio = spread / sequential;
        assert!((ratio / expected - 1.0).abs() < 0.05, "{profile:?}: {ratio}, not {expected}");
        assert_eq!(first.overlap() > Duration::ZERO, profile.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn installs_that_take_turns_do_not_overlap_and_installs_that_do_not_are_seen() {
    let cpu = Device::new("cpu0", Profile::Fair);
    let one = Double::builder().name("one").model("m").device(&cpu).start().await;
    let two = Double::builder().name("two").model("m").device(&cpu).start().await;
    for _ in 0..3 {
        one.work(8, 4).await;
        two.work(8, 4).await;
    }
    assert_eq!((cpu.overlap(), cpu.collisions()), (Duration::ZERO, 0));
    assert_eq!(cpu.timeline().len(), 6);
    assert!(cpu.timeline().windows(2).all(|two| two[0].end <= Some(two[1].start)));
    tokio::join!(one.work(0, 4), two.work(0, 4));
    assert!(two.overlap("cpu0") >= Duration::from_millis(8), "{:?}", two.overlap("cpu0"));
    assert_eq!(cpu.collisions(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_attempts_of_one_install_are_no_overlap() {
    let cpu = Device::new("cpu0", Profile::Oversubscribed);
    let double = Double::builder().model("m").num_parallel(2).device(&cpu).start().await;
    tokio::join!(double.work(0, 4), double.work(0, 4));
    assert_eq!(double.timeline().len(), 2);
    assert_eq!((cpu.overlap(), cpu.collisions()), (Duration::ZERO, 0));
}

#[tokio::test]
async fn devices_between_processes_slow_each_other_and_leave_a_time_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = || Device::between_processes("gpu0", Profile::Oversubscribed, dir.path()).expect("a device");
    let one = Double::builder().name("one").model("m").device(device()).start().await;
    let two = Double::builder().name("two").model("m").device(device()).start().await;
    one.work(0, 5).await;
    two.work(0, 5).await;
    let witness = Witness::read(dir.path()).expect("a time line");
    assert_eq!(witness.overlap("gpu0"), Duration::ZERO);
    assert_eq!((witness.timeline().len(), witness.unfinished()), (2, 0));
    tokio::join!(one.work(0, 20), two.work(0, 20));
    let witness = Witness::read(dir.path()).expect("a time line");
    // 20 tokens of 2 ms at 4.8 times their time.
    assert!(witness.overlap("gpu0") > Duration::from_millis(150), "{:?}", witness.overlap("gpu0"));
    assert_eq!(witness.installs("gpu0").len(), 2);
    let left = std::fs::read_dir(dir.path()).expect("the directory").count();
    assert_eq!(left, 1, "only the time line stays");
}

#[tokio::test]
async fn a_place_whose_owner_died_is_freed() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("gpu0~dead~1-1-1.active"), b"").expect("a file without a lock");
    let device = Device::between_processes("gpu0", Profile::Oversubscribed, dir.path()).expect("a device");
    let double = Double::builder().name("alive").model("m").device(device).start().await;
    double.work(0, 1).await;
    assert!(!dir.path().join("gpu0~dead~1-1-1.active").exists());
}

#[tokio::test]
async fn burning_takes_about_as_long_as_it_says() {
    let double = Double::builder().model("m").burn(1).decode_us(5000).start().await;
    let reply = chat(&double, "x").await;
    let last = reply.last();
    let per_token =
        last["eval_duration"].as_f64().unwrap_or(0.0) / last["eval_count"].as_f64().unwrap_or(1.0);
    // Only a lower bound, and a low one: the rest is what other work on this machine decides.
    assert!(per_token > 1_000_000.0, "{per_token} ns for a token of 5 ms");
}
