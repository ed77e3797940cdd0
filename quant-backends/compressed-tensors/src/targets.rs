use std::collections::BTreeMap;

use moekit_quant::{ModuleList, ModulePattern, QuantError};

use crate::config::unsupported;
use crate::scheme::Scheme;

/// The class of every linear of an expert.
const CLASS: &str = "Linear";

/// Which linear has which format.
#[derive(Debug)]
pub(crate) struct Targets {
    schemes: Vec<Scheme>,
    ignored: ModuleList,
    ignores_class: bool,
    exact: BTreeMap<String, usize>,
    /// In alphabetical order, the order in which the library looks at them.
    regexes: Vec<(ModulePattern, usize)>,
    class: Option<usize>,
}

impl Targets {
    pub(crate) fn new(
        groups: Vec<(Scheme, &[String])>,
        ignore: &[String],
    ) -> Result<Self, QuantError> {
        let mut targets = Self {
            schemes: Vec::new(),
            ignored: ModuleList::new(ignore.iter().map(|entry| pattern(entry)))?,
            ignores_class: ignore.iter().any(|entry| entry == CLASS),
            exact: BTreeMap::new(),
            regexes: Vec::new(),
            class: None,
        };
        let mut regexes = BTreeMap::new();
        for (index, (scheme, names)) in groups.into_iter().enumerate() {
            for name in names {
                if name.starts_with("re:") {
                    regexes.insert(name, index);
                } else if name == CLASS {
                    targets.class = Some(index);
                } else {
                    targets.exact.insert(name.clone(), index);
                }
            }
            targets.schemes.push(scheme);
        }
        if regexes.len() > ModuleList::MAX_REGEXES {
            let what = format!("{} regular expressions among the targets", regexes.len());
            let supported = format!("{} of them", ModuleList::MAX_REGEXES);
            return Err(unsupported(what, &supported));
        }
        for (name, index) in regexes {
            targets.regexes.push((pattern(name)?, index));
        }
        Ok(targets)
    }

    /// The format of a linear; `None` if it is stored as floats.
    pub(crate) fn scheme_of(&self, module: &str) -> Result<Option<&Scheme>, QuantError> {
        if self.ignores_class || self.ignored.contains(module)? {
            return Ok(None);
        }
        let mut found = self.exact.get(module).copied();
        for (pattern, index) in &self.regexes {
            if found.is_none() && pattern.is_match(module)? {
                found = Some(*index);
            }
        }
        Ok(found
            .or(self.class)
            .and_then(|index| self.schemes.get(index)))
    }
}

fn pattern(entry: &str) -> Result<ModulePattern, QuantError> {
    match entry.strip_prefix("re:") {
        Some(regex) => ModulePattern::regex(regex),
        None => Ok(ModulePattern::exact(entry)),
    }
}
