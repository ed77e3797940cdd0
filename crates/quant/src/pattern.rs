use fancy_regex::{Regex, RegexBuilder};

use crate::QuantError;

/// Most bytes of a compiled regular expression. A repetition of repetitions is short to write and
/// takes gigabytes.
const MAX_REGEX_BYTES: usize = 1 << 18;

/// A pattern in the lists by which quantizers exclude or target modules.
///
/// ```
/// use moekit_quant::ModulePattern;
///
/// let name = "model.layers.10.mlp.experts.3.up_proj";
/// assert!(ModulePattern::glob("model.layers.10.*")?.is_match(name)?);
/// assert!(!ModulePattern::glob("model.layers.1.*")?.is_match(name)?);
/// assert!(ModulePattern::regex(r".*\.experts\.\d+\.(gate|up)_proj$")?.is_match(name)?);
/// assert!(!ModulePattern::regex("experts")?.is_match(name)?);
/// # Ok::<(), moekit_quant::QuantError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModulePattern(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Exact(String),
    End(String),
    /// A module and what it holds.
    Within(String),
    /// The start of a name up to a module's end; a dot stands for any character.
    Start(String),
    Regex(Box<Regex>),
}

impl ModulePattern {
    /// The name itself.
    pub fn exact(name: impl Into<String>) -> Self {
        Self(Kind::Exact(name.into()))
    }

    /// The end of a name.
    pub fn end(end: impl Into<String>) -> Self {
        Self(Kind::End(end.into()))
    }

    /// A regular expression that matches from the start of a name, as Python's `re.match`.
    ///
    /// # Errors
    ///
    /// If it is not a regular expression, or a very large one.
    pub fn regex(pattern: &str) -> Result<Self, QuantError> {
        let anchored = format!("^(?:{pattern})");
        let mut builder = RegexBuilder::new(&anchored);
        match builder.delegate_size_limit(MAX_REGEX_BYTES).build() {
            Ok(regex) => Ok(Self(Kind::Regex(Box::new(regex)))),
            Err(error) => Err(QuantError::Pattern {
                pattern: pattern.to_owned(),
                message: error.to_string(),
            }),
        }
    }

    /// A pattern of `*`, `?`, `[..]` and `[!..]` that matches whole names, as Python's `fnmatch`.
    ///
    /// # Errors
    ///
    /// If a set is not one (`[z-a]`).
    pub fn glob(pattern: &str) -> Result<Self, QuantError> {
        if is_literal(pattern) {
            return Ok(Self::exact(pattern));
        }
        Self::regex(&format!("{}$", glob_regex(pattern)))
    }

    /// The modules that [`ModulePattern::glob`] matches, and those that they hold.
    ///
    /// # Errors
    ///
    /// As [`ModulePattern::glob`].
    pub fn glob_within(pattern: &str) -> Result<Self, QuantError> {
        if is_literal(pattern) {
            return Ok(Self(Kind::Within(pattern.to_owned())));
        }
        Self::regex(&format!(r"{}(?:\..*)?$", glob_regex(pattern)))
    }

    /// Whether the pattern matches a name.
    ///
    /// # Errors
    ///
    /// If a regular expression takes too many steps.
    pub fn is_match(&self, name: &str) -> Result<bool, QuantError> {
        match &self.0 {
            Kind::Exact(exact) => Ok(exact == name),
            Kind::End(end) => Ok(name.ends_with(end)),
            Kind::Within(module) => Ok(name
                .strip_prefix(module.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))),
            Kind::Start(start) => Ok(starts_module(start, name)),
            Kind::Regex(regex) => regex.is_match(name).map_err(|error| QuantError::Pattern {
                pattern: regex.as_str().to_owned(),
                message: error.to_string(),
            }),
        }
    }
}

/// A list of modules.
#[derive(Clone, Debug, Default)]
pub struct ModuleList(Vec<ModulePattern>);

impl ModuleList {
    /// Most regular expressions and globs of a list. A list that names each module of a large model
    /// by its name has no limit.
    pub const MAX_REGEXES: usize = 1024;

    /// The modules that any of the patterns matches.
    ///
    /// # Errors
    ///
    /// The first error among the patterns, or if more than [`ModuleList::MAX_REGEXES`] are regular
    /// expressions or globs.
    pub fn new(
        patterns: impl IntoIterator<Item = Result<ModulePattern, QuantError>>,
    ) -> Result<Self, QuantError> {
        let mut list = Vec::new();
        let mut num_regexes = 0;
        for pattern in patterns {
            let pattern = pattern?;
            num_regexes += usize::from(matches!(pattern.0, Kind::Regex(_)));
            if num_regexes > Self::MAX_REGEXES {
                return Err(QuantError::Unsupported {
                    what: "a list of modules with more regular expressions".to_owned(),
                    supported: format!("{} of them", Self::MAX_REGEXES),
                });
            }
            list.push(pattern);
        }
        Ok(Self(list))
    }

    /// `modules_to_not_convert` as transformers reads it: a regular expression for the start of a
    /// name up to the end of a module's, or the end of a name.
    ///
    /// # Errors
    ///
    /// If an entry is not a regular expression, or there are too many, see [`ModuleList::new`].
    pub fn to_not_convert<'a>(
        entries: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self, QuantError> {
        let patterns = |entry: &'a String| {
            let start = match is_name(entry) {
                true => Ok(ModulePattern(Kind::Start(entry.clone()))),
                false => start_regex(entry),
            };
            [start, Ok(ModulePattern::end(entry))]
        };
        Self::new(entries.into_iter().flat_map(patterns))
    }

    /// Whether a module is in the list.
    ///
    /// # Errors
    ///
    /// If a regular expression takes too many steps.
    pub fn contains(&self, module: &str) -> Result<bool, QuantError> {
        for pattern in &self.0 {
            if pattern.is_match(module)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether an entry is a name, with nothing that means anything to a regular expression but dots.
fn is_name(entry: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    entry.chars().all(plain)
}

/// What [`Kind::Start`] is, for any regular expression.
fn start_regex(entry: &str) -> Result<ModulePattern, QuantError> {
    ModulePattern::regex(&format!(r"(?:{entry})(?:(?<=\.)|(?=\.|$))"))
}

fn starts_module(start: &str, name: &str) -> bool {
    let mut rest = name.chars();
    let mut last = None;
    for expected in start.chars() {
        last = rest.next();
        let fits = last.is_some_and(|c| c == expected || expected == '.' && c != '\n');
        if !fits {
            return false;
        }
    }
    let rest = rest.as_str();
    last == Some('.') || rest.is_empty() || rest.starts_with('.')
}

/// Whether a glob is nothing but a name.
fn is_literal(glob: &str) -> bool {
    !glob.contains(['*', '?', '['])
}

fn glob_regex(glob: &str) -> String {
    let mut regex = String::new();
    let mut rest = glob.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => match glob_set(rest.as_str()) {
                Some((set, after)) => {
                    regex.push_str(&set);
                    rest = after.chars();
                }
                None => regex.push_str(r"\["),
            },
            c => regex.push_str(&fancy_regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    regex
}

/// The set that begins after a `[`, as a regular expression, and what follows it; `None` if it does
/// not end.
fn glob_set(after_bracket: &str) -> Option<(String, &str)> {
    let (negated, set) = match after_bracket.strip_prefix('!') {
        Some(set) => ("^", set),
        None => ("", after_bracket),
    };
    // A `]` that comes first belongs to the set.
    let end = set.char_indices().skip(1).find(|(_, c)| *c == ']')?.0;
    let mut escaped = String::new();
    for c in set[..end].chars() {
        if matches!(c, '\\' | '[' | ']' | '^' | '&' | '~') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    Some((format!("[{negated}{escaped}]"), &set[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A name means what it means as a regular expression.
        #[test]
        fn names_are_regular_expressions(entry in "[ab.1]{0,4}", name in "[ab.1]{0,6}") {
            let as_regex = start_regex(&entry).unwrap().is_match(&name).unwrap();
            prop_assert_eq!(starts_module(&entry, &name), as_regex, "{} {}", entry, name);
        }
    }

    fn glob(pattern: &str, name: &str) -> bool {
        ModulePattern::glob(pattern)
            .unwrap()
            .is_match(name)
            .unwrap()
    }

    #[test]
    fn globs_match_as_in_python() {
        assert!(glob("lm_head", "lm_head"));
        assert!(!glob("lm_head", "lm_head.0"));
        assert!(glob("*.mlp.gate", "model.layers.0.mlp.gate"));
        assert!(!glob("*.mlp.gate", "model.layers.0.mlp.gate_proj"));
        assert!(glob("layers.?.x", "layers.1.x") && !glob("layers.?.x", "layers.10.x"));
        assert!(glob("layers.[0-3].x", "layers.3.x") && !glob("layers.[!0-3].x", "layers.3.x"));
        // The dot of a name is a dot.
        assert!(!glob("a.b*", "aXb"));
        assert!(glob("[]x]a", "]a") && glob("a[b", "a[b"));
    }

    #[test]
    fn what_a_module_holds_is_within() {
        let within = |pattern: &str, name: &str| {
            let pattern = ModulePattern::glob_within(pattern).unwrap();
            pattern.is_match(name).unwrap()
        };
        for pattern in ["a.b", "?.b", "[a].b"] {
            assert!(
                within(pattern, "a.b") && within(pattern, "a.b.c.d"),
                "{pattern}"
            );
            assert!(
                !within(pattern, "a.bc") && !within(pattern, "a"),
                "{pattern}"
            );
        }
        assert!(within("*.mlp*", "x.mlp.gate") && !within("*.mlp", "x.mlps"));
    }

    #[test]
    fn regexes_match_from_the_start_and_look_around() {
        let regex = |pattern: &str, name: &str| {
            ModulePattern::regex(pattern)
                .unwrap()
                .is_match(name)
                .unwrap()
        };
        assert!(regex("model", "model.layers"));
        assert!(!regex("layers", "model.layers"));
        assert!(regex("^(?!.*gate_proj).*", "mlp.up_proj"));
        assert!(!regex("^(?!.*gate_proj).*", "mlp.gate_proj"));
        assert!(regex("a|b", "b.c"));
    }

    #[test]
    fn transformers_lists_end_at_modules() {
        let entries = ["model.layers.1", "mlp.gate", "model.layers.*.self_attn"];
        let list = ModuleList::to_not_convert(&entries.map(str::to_owned)).unwrap();
        let contains = |name: &str| list.contains(name).unwrap();
        assert!(contains("model.layers.1.mlp.experts.0.up_proj"));
        assert!(!contains("model.layers.10.mlp.experts.0.up_proj"));
        assert!(contains("model.layers.3.mlp.gate") && !contains("model.layers.3.mlp.gate_proj"));
        assert!(contains("model.layers.3.self_attn.q_proj"));
    }

    #[test]
    fn bad_patterns_are_named() {
        let error = ModulePattern::regex("a(b").unwrap_err().to_string();
        assert!(error.contains("`a(b`"), "{error}");
        assert!(ModulePattern::glob("[z-a]").is_err());
    }

    /// What is short to write and takes gigabytes is refused; names do not count.
    #[test]
    fn lists_have_a_limit() {
        assert!(ModulePattern::regex(r"(?:.{500}){500}").is_err());
        assert!(ModulePattern::regex(r".*\.layers\.\d+\.mlp\.experts\.\w+\..*_proj$").is_ok());
        let list = |entry: fn(usize) -> String, len: usize| {
            let entries: Vec<String> = (0..len).map(entry).collect();
            ModuleList::to_not_convert(&entries)
        };
        let most = ModuleList::MAX_REGEXES;
        assert!(list(|i| format!("layers.{i}.mlp"), 20 * most).is_ok());
        assert!(list(|i| format!("layers.{i}.*"), most).is_ok());
        let error = list(|i| format!("layers.{i}.*"), most + 1).unwrap_err();
        assert!(error.to_string().contains("1024 of them"), "{error}");
    }

    /// A pattern that takes exponentially many steps is an error, not a hang.
    #[test]
    fn catastrophic_patterns_end() {
        let pattern = ModulePattern::regex(r"(a|b|ab)*(?=c)\1$").unwrap();
        let name = "ab".repeat(100) + "d";
        assert!(pattern.is_match(&name).is_err());
    }
}
