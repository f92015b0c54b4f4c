//! Images of distributions, by their names.

use anyhow::{Context, Result};
use images::debian::{self, Mirror, Recipe};
use images::name::Name;
use images::progress::Progress;
use images::store::Store as Images;

use crate::exit::Usage;

/// The names that have a recipe, for a help text.
pub fn known() -> String {
    let names: Vec<&str> =
        debian::all().iter().flat_map(|recipe| &recipe.names).map(String::as_str).collect();
    format!("Known: {}", names.join(", "))
}

/// Make the distribution `wanted`, and let it have the name `called`.
pub fn build(
    images: &Images,
    wanted: &Name,
    called: &Name,
    options: &debian::Options,
    progress: &mut dyn Progress,
) -> Result<()> {
    let recipe = Recipe::named(wanted)
        .ok_or_else(|| Usage(format!("there is no recipe for {wanted}. {}", known())))?;
    with_recipe(images, wanted, recipe, called, options, progress)
}

/// Make the image `text`, which is not there, if there is a recipe for it. Says whether there is.
pub fn by_name(images: &Images, text: &str, progress: &mut dyn Progress) -> Result<bool> {
    let Some((name, recipe)) =
        text.parse::<Name>().ok().and_then(|name| Recipe::named(&name).map(|recipe| (name, recipe)))
    else {
        return Ok(false);
    };
    let options = debian::Options { mirror: Mirror::choose(None), size: debian::SIZE };
    with_recipe(images, &name, recipe, &name, &options, progress).map(|()| true)
}

fn with_recipe(
    images: &Images,
    wanted: &Name,
    recipe: &Recipe,
    called: &Name,
    options: &debian::Options,
    progress: &mut dyn Progress,
) -> Result<()> {
    let manifest = debian::build(images, wanted, recipe, crate::agent::PROGRAM, options, progress)
        .with_context(|| format!("cannot build {wanted}"))?;
    let id = images.put(&manifest)?;
    Ok(images.tag(called, &id)?)
}
