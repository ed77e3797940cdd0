//! What the compiler says of a plugin: that the minimal one of today compiles, and why others do
//! not. The cases are in `tests/ui` of the repository.

#[test]
fn interface() {
    let cases = trybuild::TestCases::new();
    cases.pass("../../tests/ui/pass/*.rs");
    cases.compile_fail("../../tests/ui/fail/*.rs");
}
