//! Random inputs from a fixed seed, shrunk where they fail.

use std::any::Any;
use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Holds `check` against random values; the error is that of the smallest value that fails.
pub(crate) fn check<S: Strategy>(
    values: &S,
    check: impl Fn(&S::Value) -> Result<(), String>,
) -> Result<(), String>
where
    S::Value: Debug,
{
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(values, |value| check(&value).map_err(TestCaseError::fail))
        .map_err(|error| match error {
            TestError::Fail(what, _) => what.to_string(),
            TestError::Abort(reason) => reason.to_string(),
        })
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "something without a message".to_owned())
}
