//! `stridenet inspect`.

use super::{architecture, open_model};
use crate::arguments::InspectFlags;
use crate::console::Console;
use crate::failure::Failure;
use std::sync::Arc;
use stridenet::arch::{Overrides, preset_names};
use stridenet::file::write_atomically;
use stridenet::kernels::Context;

/// Prints a network's layers and totals.
pub(crate) fn run(cx: &Arc<Context>, console: &Console, flags: &InspectFlags) -> Result<(), Failure> {
    let InspectFlags { network, shape, svg } = flags;
    let described = preset_names().contains(&network.as_str()) || network.ends_with(".json");
    let exists = std::path::Path::new(network).exists();
    let arch = if described || !exists {
        architecture(network, shape)?
    } else {
        let changes = Overrides { img_size: None, ..shape.overrides() };
        if changes != Overrides::default() {
            return Err(Failure::usage(format!(
                "{network} is a model, whose architecture is fixed; only --img-size can change"
            )));
        }
        let model = open_model(cx, console, network.as_ref(), shape.img_size)?;
        let img_size = Some(model.preprocess.input_size);
        model
            .network()
            .arch()
            .with(&Overrides { img_size, ..Overrides::default() })
            .map_err(Failure::usage)?
    };
    let summary = arch.summary(arch.img_size).map_err(Failure::usage)?;
    if let Some(path) = svg {
        let drawing = arch.svg(arch.img_size).map_err(Failure::usage)?;
        write_atomically(path, |to| to.write_all(drawing.as_bytes())).map_err(stridenet::Error::from)?;
        console.message(format_args!("wrote {}", path.display()));
    }
    match console.json {
        true => console.json(&summary)?,
        false => console.result(&summary.to_table())?,
    }
    Ok(())
}
