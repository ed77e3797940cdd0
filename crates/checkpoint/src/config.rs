use std::collections::{BTreeMap, BTreeSet};

use moekit_quant::{Activation, MoeLayerSpec, MoeModelSpec};
use serde_json::Value;

use crate::parts::forgotten;
use crate::{CheckpointError, family};

/// Largest size, and largest number of experts or layers, that a configuration may claim.
const MAX_SIZE: u64 = 1 << 31;
/// A model has fewer layers; a configuration that claims billions must not cost memory.
const MAX_LAYERS: usize = 1 << 14;

/// What a family reads: `config.json` and the names of the checkpoint's tensors.
///
/// A key is looked up in the text model's own configuration (`text_config`, `llm_config`) first.
/// Every getter takes the spellings of a key in order of preference; `null` is as good as missing.
#[derive(Debug)]
pub struct ModelConfig<'a> {
    root: &'a Value,
    text: Option<&'a Value>,
    tensors: BTreeSet<&'a str>,
}

impl<'a> ModelConfig<'a> {
    /// A configuration and the names of the tensors, as far as they are known.
    pub fn new(config: &'a Value, tensors: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            root: config,
            text: text_config(config),
            tensors: tensors.into_iter().collect(),
        }
    }

    /// What the family of the model says of it.
    ///
    /// # Errors
    ///
    /// If no family reads the model type, or the configuration lacks something.
    pub fn model(&self) -> Result<MoeModelSpec, CheckpointError> {
        let Some(outermost) = self.model_types().last() else {
            return Err(self.error("model_type", "the name of a model family"));
        };
        let families = family::known()?;
        let Some(family) = self.model_types().find_map(|t| families.get(t).copied()) else {
            return Err(family::unknown(outermost, &families));
        };
        let mut model = (family.spec)(self)?;
        outermost.clone_into(&mut model.model_type);
        for layer in &model.layers {
            layer.check()?;
            self.check_parts(layer)?;
        }
        Ok(model)
    }

    /// A part of the layer that the checkpoint holds and the configuration does not speak of would
    /// be left out in silence.
    fn check_parts(&self, layer: &MoeLayerSpec) -> Result<(), CheckpointError> {
        let index = format!(".{}.", layer.layer);
        let Some((before, _)) = layer.router.weight.split_once(&index) else {
            return Ok(());
        };
        let prefix = format!("{before}{index}");
        let inside = self.tensors.range(prefix.as_str()..).copied();
        match forgotten(layer, inside.take_while(|name| name.starts_with(&prefix))) {
            None => Ok(()),
            Some(name) => {
                let what = format!("tensor `{name}`, of which config.json says nothing,");
                let supported = "the shared experts and biases of the family, as configured";
                Err(self.unsupported(what, supported))
            }
        }
    }

    /// The values of `model_type`, the innermost first: the first one that a family reads is what
    /// chose that family.
    pub fn model_types(&self) -> impl Iterator<Item = &'a str> {
        let configs = [self.text, Some(self.root)].into_iter().flatten();
        configs.filter_map(|config| config.get("model_type")?.as_str())
    }

    /// `model_type` of the outermost configuration that has one.
    pub fn model_type(&self) -> &'a str {
        self.model_types().last().unwrap_or_default()
    }

    /// The first of the keys that is there and not `null`.
    pub fn value(&self, keys: &[&str]) -> Option<&'a Value> {
        let get = |config: &'a Value, key: &str| config.get(key).filter(|value| !value.is_null());
        keys.iter().find_map(|key| {
            self.text
                .and_then(|text| get(text, key))
                .or_else(|| get(self.root, key))
        })
    }

    /// A size or count of at least 1.
    ///
    /// # Errors
    ///
    /// If it is missing, not a whole number, 0 or beyond 2^31.
    pub fn size(&self, keys: &[&str]) -> Result<usize, CheckpointError> {
        match self.count(keys)? {
            Some(size) if size > 0 => Ok(size),
            _ => Err(self.error(&keys.join("` or `"), "a number from 1 to 2^31")),
        }
    }

    /// A size or count of at least 1, `default` if it is missing.
    ///
    /// # Errors
    ///
    /// If it is there and not a whole number, 0 or beyond 2^31.
    pub fn size_or(&self, keys: &[&str], default: usize) -> Result<usize, CheckpointError> {
        match self.value(keys) {
            None => Ok(default),
            Some(_) => self.size(keys),
        }
    }

    /// A count, `None` if it is missing.
    ///
    /// # Errors
    ///
    /// If it is not a whole number or beyond 2^31.
    pub fn count(&self, keys: &[&str]) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.value(keys) else {
            return Ok(None);
        };
        // DBRX and others write some counts as floats.
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0)?;
            Some(float as u64)
        });
        match whole.filter(|&size| size <= MAX_SIZE) {
            Some(size) => Ok(Some(size as usize)),
            None => Err(self.error(&keys.join("` or `"), "a whole number up to 2^31")),
        }
    }

    /// A number, `None` if it is missing.
    ///
    /// # Errors
    ///
    /// If it is not a number that `f32` holds.
    pub fn float(&self, keys: &[&str]) -> Result<Option<f32>, CheckpointError> {
        let Some(value) = self.value(keys) else {
            return Ok(None);
        };
        match value.as_f64().map(|f| f as f32).filter(|f| f.is_finite()) {
            Some(float) => Ok(Some(float)),
            None => Err(self.error(&keys.join("` or `"), "a number")),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    ///
    /// If it is there and neither `true` nor `false`.
    pub fn flag_or(&self, keys: &[&str], default: bool) -> Result<bool, CheckpointError> {
        match self.value(keys) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(&keys.join("` or `"), "true or false")),
        }
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// If it is there and not a text.
    pub fn text_or(&self, keys: &[&str], default: &'a str) -> Result<&'a str, CheckpointError> {
        match self.value(keys) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.error(&keys.join("` or `"), "a text")),
        }
    }

    /// A list of layers; empty if it is missing.
    ///
    /// # Errors
    ///
    /// If it is there and not a list of whole numbers.
    pub fn indices(&self, keys: &[&str]) -> Result<Vec<usize>, CheckpointError> {
        let Some(value) = self.value(keys) else {
            return Ok(Vec::new());
        };
        let index = |v: &Value| v.as_u64().and_then(|index| usize::try_from(index).ok());
        value
            .as_array()
            .and_then(|list| list.iter().map(index).collect())
            .ok_or_else(|| self.error(&keys.join("` or `"), "a list of layer indices"))
    }

    /// The gated activation of `hidden_act`, clamped to `swiglu_limit` if there is one.
    ///
    /// # Errors
    ///
    /// If the name is not known.
    pub fn activation(&self) -> Result<Activation, CheckpointError> {
        let keys = ["hidden_act", "hidden_activation", "activation_function"];
        let limit = self.float(&["swiglu_limit"])?;
        let name = self.text_or(&keys, "silu")?;
        Activation::from_hidden_act(name, limit).ok_or_else(|| {
            self.error(
                &keys.join("` or `"),
                "`silu`, `gelu` or `gelu_pytorch_tanh`",
            )
        })
    }

    /// The view on an object within the configuration; its keys come first.
    ///
    /// # Errors
    ///
    /// If it is missing or not an object.
    pub fn section(&self, key: &str) -> Result<Self, CheckpointError> {
        match self.value(&[key]).filter(|value| value.is_object()) {
            Some(section) => Ok(Self {
                root: self.root,
                text: Some(section),
                tensors: self.tensors.clone(),
            }),
            None => Err(self.error(key, "an object")),
        }
    }

    /// Whether a key is there, be it `null`.
    pub fn has_key(&self, key: &str) -> bool {
        let has = |config: &Value| config.get(key).is_some();
        self.text.is_some_and(has) || has(self.root)
    }

    /// Whether the checkpoint has a tensor within that module.
    pub fn has_module(&self, module: &str) -> bool {
        let inside = format!("{module}.");
        let mut from = self.tensors.range(inside.as_str()..);
        from.next().is_some_and(|name| name.starts_with(&inside))
    }

    /// Whether the checkpoint has a tensor of that name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// The model, layer by layer.
    ///
    /// # Arguments
    ///
    /// - `gate` - name of the router's weight within a layer (`mlp.gate.weight`). The names of the
    ///   tensors show what comes before the layer's index; it is `model.layers` where none tells.
    /// - `spec` - the MoE layer of an index and its prefix (`model.layers.3`), `None` if that layer
    ///   is dense.
    ///
    /// # Errors
    ///
    /// If `num_hidden_layers` or `hidden_size` is missing, or `spec` fails.
    pub fn layers(
        &self,
        gate: &str,
        spec: impl Fn(usize, &str) -> Result<Option<MoeLayerSpec>, CheckpointError>,
    ) -> Result<MoeModelSpec, CheckpointError> {
        let keys = ["num_hidden_layers", "n_layers", "num_layers"];
        let num_layers = self.size(&keys)?;
        if num_layers > MAX_LAYERS {
            return Err(self.error(
                &keys.join("` or `"),
                &format!("at most {MAX_LAYERS} layers"),
            ));
        }
        let before = self.before_layers(gate).unwrap_or("model.layers");
        let mut layers = Vec::new();
        for index in 0..num_layers {
            layers.extend(spec(index, &format!("{before}.{index}"))?);
        }
        let hidden_size = self.size(&["hidden_size", "d_model"])?;
        let mut model = MoeModelSpec::new(self.model_type(), hidden_size, num_layers, layers);
        model.dtype = self
            .value(&["dtype", "torch_dtype"])
            .and_then(Value::as_str)
            .map(str::to_owned);
        Ok(model)
    }

    /// What most names of the form `{before}.{index}.{gate}` begin with.
    fn before_layers(&self, gate: &str) -> Option<&'a str> {
        let mut found = BTreeMap::<&str, usize>::new();
        for name in &self.tensors {
            let Some(layer) = name.strip_suffix(gate).and_then(|n| n.strip_suffix('.')) else {
                continue;
            };
            let before = layer.trim_end_matches(|c: char| c.is_ascii_digit());
            if let Some(before) = before.strip_suffix('.').filter(|_| before != layer) {
                *found.entry(before).or_default() += 1;
            }
        }
        // Of equally frequent ones the first in order.
        found
            .into_iter()
            .rev()
            .max_by_key(|(_, count)| *count)
            .map(|(before, _)| before)
    }

    /// An error that names a key and its value.
    pub fn error(&self, key: &str, expected: &str) -> CheckpointError {
        let got = key.split("` or `").find_map(|key| self.value(&[key]));
        let got = got.map_or("missing".to_owned(), |value| {
            let mut text = value.to_string();
            text.truncate(text.char_indices().nth(60).map_or(text.len(), |(at, _)| at));
            text
        });
        CheckpointError::Config {
            key: key.to_owned(),
            got,
            expected: expected.to_owned(),
        }
    }

    /// An error for a variant that cannot be computed rightly.
    pub fn unsupported(&self, what: impl Into<String>, supported: &str) -> CheckpointError {
        CheckpointError::Unsupported {
            model_type: self.model_type().to_owned(),
            what: what.into(),
            supported: supported.to_owned(),
        }
    }
}

/// The configuration of the text model within that of a model of more than text.
pub(crate) fn text_config(config: &Value) -> Option<&Value> {
    let mut found = ["text_config", "llm_config"]
        .iter()
        .filter_map(|key| config.get(key));
    found.find(|text| text.is_object())
}
