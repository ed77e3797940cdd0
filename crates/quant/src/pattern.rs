use fancy_regex::Regex;

use crate::QuantError;

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
    /// If it is not a regular expression.
    pub fn regex(pattern: &str) -> Result<Self, QuantError> {
        match Regex::new(&format!("^(?:{pattern})")) {
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
        if !pattern.contains(['*', '?', '[']) {
            return Ok(Self::exact(pattern));
        }
        let mut regex = String::new();
        let mut rest = pattern.chars();
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
        Self::regex(&format!("{regex}$"))
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
    /// The modules that any of the patterns matches.
    pub fn new(patterns: impl IntoIterator<Item = ModulePattern>) -> Self {
        Self(patterns.into_iter().collect())
    }

    /// `modules_to_not_convert` as transformers reads it: a regular expression for the start of a
    /// name up to the end of a module's, or the end of a name.
    ///
    /// # Errors
    ///
    /// If an entry is not a regular expression.
    pub fn to_not_convert<'a>(
        entries: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self, QuantError> {
        let mut patterns = Vec::new();
        for entry in entries {
            let boundary = r"(?:(?<=\.)|(?=\.|$))";
            patterns.push(ModulePattern::regex(&format!("(?:{entry}){boundary}"))?);
            patterns.push(ModulePattern::end(entry));
        }
        Ok(Self(patterns))
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
    use super::*;

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

    /// A pattern that takes exponentially many steps is an error, not a hang.
    #[test]
    fn catastrophic_patterns_end() {
        let pattern = ModulePattern::regex(r"(a|b|ab)*(?=c)\1$").unwrap();
        let name = "ab".repeat(100) + "d";
        assert!(pattern.is_match(&name).is_err());
    }
}
