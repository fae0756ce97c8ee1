//! `dr demo`.

use std::sync::Arc;

use dr_demo::{Narrator, StoryRequest};

use crate::args::DemoArgs;
use crate::context::{Context, absolute, own_binary};
use crate::failure::{FAILED, Failure};
use crate::output;

struct Stdout;

impl Narrator for Stdout {
    fn line(&self, text: &str) {
        output::data(text);
    }
}

pub(crate) async fn run(context: &Context, arguments: DemoArgs) -> Result<u8, Failure> {
    if let Some([url, nats, log]) = arguments.relay.as_deref() {
        dr_demo::relay_and_consume(url, nats, std::path::Path::new(log), context.cancel.clone())
            .await?;
        return Ok(0);
    }
    let folder = absolute(&arguments.dir)?;
    if arguments.clean {
        dr_demo::clean(&folder, &Stdout)?;
        return Ok(0);
    }
    let request = StoryRequest {
        folder,
        dr_binary: own_binary()?,
    };
    let all_kept = dr_demo::story(&request, Arc::new(Stdout), context.cancel.clone()).await?;
    Ok(if all_kept { 0 } else { FAILED })
}
