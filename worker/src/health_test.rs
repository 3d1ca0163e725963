//! Tests of checks and what their outcomes mean: examples, then properties over random outcomes.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_image::Healthcheck;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn check(retries: u32, start_period: Duration) -> Arc<Check> {
    Arc::new(Check {
        command: words("true"),
        interval: 30 * SECOND,
        timeout: SECOND,
        retries,
        start_period,
        start_interval: 5 * SECOND,
    })
}

fn new(retries: u32, start_period: Duration) -> Health {
    Health::resume(check(retries, start_period), &ContainerStatus::default(), Duration::ZERO)
}

fn failed(health: &mut Health) {
    let waited = health.wait();
    health.checked(Checked { waited, took: Duration::ZERO, result: CheckResult::Failed("no".to_owned()) });
}

fn passed(health: &mut Health) {
    let waited = health.wait();
    health.checked(Checked { waited, took: Duration::ZERO, result: CheckResult::Passed });
}

#[test]
fn the_service_goes_over_the_image_field_by_field() {
    let image = RunConfig {
        healthcheck: Some(Healthcheck {
            test: words("CMD probe"),
            interval: 7 * SECOND,
            retries: 9,
            ..Healthcheck::default()
        }),
        ..RunConfig::default()
    };
    let of_image = Check::resolve(None, &image).unwrap().unwrap();
    assert_eq!((of_image.command, of_image.interval, of_image.retries), (words("probe"), 7 * SECOND, 9));
    assert_eq!((of_image.timeout, of_image.start_period), (30 * SECOND, Duration::ZERO));
    let service = HealthCheck { timeout_ms: 200, retries: 1, ..HealthCheck::default() };
    let mixed = Check::resolve(Some(&service), &image).unwrap().unwrap();
    assert_eq!((mixed.command, mixed.interval), (words("probe"), 7 * SECOND));
    assert_eq!((mixed.timeout, mixed.retries), (Duration::from_millis(200), 1));
    let none = HealthCheck { test: words("NONE"), ..HealthCheck::default() };
    assert_eq!(Check::resolve(Some(&none), &image), Ok(None));
    assert_eq!(Check::resolve(Some(&service), &RunConfig::default()), Ok(None), "nothing to run, no check");
}

#[test]
fn a_shell_line_goes_to_the_images_shell() {
    let service = HealthCheck { test: vec!["CMD-SHELL".into(), "a || b".into()], ..HealthCheck::default() };
    let mut image = RunConfig::default();
    let command = |image: &RunConfig| Check::resolve(Some(&service), image).unwrap().unwrap().command;
    assert_eq!(command(&image), ["/bin/sh", "-c", "a || b"]);
    image.shell = words("/bin/bash -o pipefail -c");
    assert_eq!(command(&image).last().unwrap(), "a || b");
    assert_eq!(command(&image)[0], "/bin/bash");
}

#[test]
fn nonsense_is_refused() {
    let of = |test: &str| {
        let service = HealthCheck { test: words(test), ..HealthCheck::default() };
        Check::resolve(Some(&service), &RunConfig::default())
    };
    assert_eq!(of("CMD"), Err(CheckError::NoCommand("CMD".into())));
    assert!(of("curl localhost").unwrap_err().to_string().contains("\"curl\" is not a kind of health check"));
}

#[test]
fn failures_in_a_row_make_it_unhealthy_and_a_success_ends_the_row() {
    let mut health = new(3, Duration::ZERO);
    assert_eq!(health.wait(), 30 * SECOND);
    for _ in 0..2 {
        failed(&mut health);
        failed(&mut health);
        assert_eq!(health.streak, 2);
        passed(&mut health);
        assert_eq!((health.state(), health.streak), (HealthState::Healthy, 0));
    }
    (0..3).for_each(|_| failed(&mut health));
    assert_eq!(health.state(), HealthState::Unhealthy);
    assert_eq!(health.complaint(), "health check failed 3 times: no");
}

#[test]
fn the_start_period_excuses_failures_until_the_first_success() {
    let mut health = new(1, 12 * SECOND);
    assert_eq!(health.wait(), 5 * SECOND);
    failed(&mut health);
    failed(&mut health);
    assert_eq!((health.state(), health.streak), (HealthState::Starting, 0));
    // The next begins at 15 s, after the period.
    failed(&mut health);
    assert_eq!(health.state(), HealthState::Unhealthy);

    let mut health = new(1, 1000 * SECOND);
    passed(&mut health);
    assert_eq!(health.wait(), 30 * SECOND, "healthy: the ordinary interval");
    failed(&mut health);
    assert_eq!(health.state(), HealthState::Unhealthy, "after a success failures count");
}

#[test]
fn a_check_that_could_not_be_run_says_nothing() {
    let mut health = new(1, Duration::ZERO);
    let result = CheckResult::NotRun("no more processes".into());
    health.checked(Checked { waited: SECOND, took: SECOND, result });
    assert_eq!((health.state(), health.streak, health.uptime), (HealthState::Starting, 0, 2 * SECOND));
}

#[test]
fn a_known_state_is_resumed() {
    let mut status = ContainerStatus::default();
    let mut health = new(5, Duration::ZERO);
    passed(&mut health);
    failed(&mut health);
    health.tell(&mut status);
    let resumed = Health::resume(check(5, Duration::ZERO), &status, health.uptime);
    assert_eq!(resumed, health);
}

#[test]
fn output_is_cut_in_whole_characters() {
    let mut health = new(1, Duration::ZERO);
    let long = "ä".repeat(OUTPUT_BYTES);
    health.checked(Checked { waited: SECOND, took: SECOND, result: CheckResult::Failed(format!("x{long}")) });
    assert_eq!(health.output.len(), OUTPUT_BYTES - 1);
    assert!(health.complaint().len() < 2 * QUOTED_BYTES);
}

proptest! {
    /// The verdict is what a reader of the rules would say of the whole history.
    #[test]
    fn the_verdict_follows_from_the_history(
        retries in 1u32..5,
        start_period in 0u64..60,
        outcomes in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..10), 0..40),
        resumed_at in 0usize..40,
    ) {
        let mut health = new(retries, Duration::from_secs(start_period));
        let (mut now, mut ever, mut row) = (0, false, 0);
        let mut expected = HealthState::Starting;
        for (at, (well, waited, took)) in outcomes.into_iter().enumerate() {
            let began = now + waited;
            now = began + took;
            if well {
                (ever, row, expected) = (true, 0, HealthState::Healthy);
            } else if ever || expected == HealthState::Unhealthy || began >= start_period {
                row += 1;
                if row >= retries {
                    expected = HealthState::Unhealthy;
                }
            }
            let result = if well { CheckResult::Passed } else { CheckResult::Failed("x".into()) };
            health.checked(Checked {
                waited: Duration::from_secs(waited),
                took: Duration::from_secs(took),
                result,
            });
            prop_assert_eq!(health.state(), expected);
            if at == resumed_at {
                let mut status = ContainerStatus::default();
                health.tell(&mut status);
                health = Health::resume(Arc::clone(health.check()), &status, Duration::from_secs(now));
            }
        }
    }
}
