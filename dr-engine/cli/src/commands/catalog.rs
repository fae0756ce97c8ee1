//! `dr catalog`.

use crate::args::CatalogCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::output;

pub(crate) async fn run(context: &Context, command: CatalogCommand) -> Result<u8, Failure> {
    let CatalogCommand::Rebuild = command;
    let installation = context.installation()?;
    let report = installation.rebuild_catalog().await?;
    if context.json {
        output::json(&report)?;
    } else {
        output::data(&format!(
            "catalog {} rebuilt: {} restore points of {} repositories",
            installation.config.engine.catalog, report.restore_points, report.repositories
        ));
    }
    Ok(0)
}
