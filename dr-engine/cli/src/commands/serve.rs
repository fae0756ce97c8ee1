//! `dr serve`.

use crate::context::Context;
use crate::failure::Failure;

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let installation = context.installation()?;
    dr_server::serve(installation, context.cancel.clone()).await?;
    Ok(0)
}
