//! What kind of model a plan trains, worked out from its layers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Layer, ModelSpec};

/// A kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFamily {
    /// Linear layers, and what has no parameters between them.
    Dense,
    /// Convolutions, learnt or fixed (scattering).
    Convolution,
    /// Tokens or attention.
    Transformer,
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dense => "dense",
            Self::Convolution => "convolution",
            Self::Transformer => "transformer",
        })
    }
}

impl ModelSpec {
    /// The family of the whole model: its most involved layer decides.
    #[must_use]
    pub fn family(&self) -> ModelFamily {
        of_layers(&self.layers)
    }
}

fn of_layers(layers: &[Layer]) -> ModelFamily {
    layers.iter().map(of_layer).max().unwrap_or(ModelFamily::Dense)
}

/// Every layer is named here, so that a new one is given a family on purpose.
fn of_layer(layer: &Layer) -> ModelFamily {
    match layer {
        Layer::Attention { .. }
        | Layer::Embedding { .. }
        | Layer::PositionEmbedding
        | Layer::MeanPool => ModelFamily::Transformer,
        Layer::Conv2d { .. }
        | Layer::MaxPool2d { .. }
        | Layer::AvgPool2d { .. }
        | Layer::GroupNorm { .. }
        | Layer::Scattering { .. } => ModelFamily::Convolution,
        Layer::Residual { layers } | Layer::Frozen { layers } | Layer::Local { layers } => {
            of_layers(layers)
        }
        Layer::Linear { .. }
        | Layer::LoraLinear { .. }
        | Layer::LayerNorm
        | Layer::Standardise
        | Layer::Relu
        | Layer::Tanh
        | Layer::Gelu
        | Layer::Flatten => ModelFamily::Dense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_involved_layer_decides() {
        let family = |layers| ModelSpec { layers }.family();
        let dense = vec![Layer::Flatten, Layer::Linear { out: 2 }, Layer::Relu];
        assert_eq!(family(dense.clone()), ModelFamily::Dense);
        let scattering = Layer::Scattering { scales: 2, angles: 4, norm_groups: None };
        let hidden = vec![Layer::Residual { layers: vec![scattering] }, Layer::Flatten];
        assert_eq!(family(hidden), ModelFamily::Convolution);
        let mut tokens = dense;
        tokens.insert(0, Layer::Embedding { vocabulary: 10, out: 4 });
        assert_eq!(family(tokens), ModelFamily::Transformer);
        assert_eq!(family(Vec::new()), ModelFamily::Dense);
    }
}
