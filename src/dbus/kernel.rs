//! Reading the kernel for whoever asks: never from memory, and never twice at the same time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use super::Error;
use crate::daemon::calls::Facts;
use crate::lock::Status;
use crate::status;

/// The last reading. Whoever waited while it was begun shares it; whoever comes later gets another:
/// ten thousand callers cost two readings.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernel(Arc<Mutex<Option<Reading>>>);

/// When it was begun, and what it said.
type Reading = (Instant, Arc<Status>);

impl Kernel {
    /// What the kernel holds, read after this was called.
    pub(super) async fn status(&self, facts: Arc<Facts>) -> Result<Arc<Status>, Error> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((begun, status)) = &*last
            && *begun >= asked
        {
            return Ok(status.clone());
        }
        let begun = Instant::now();
        let read = tokio::task::spawn_blocking(move || {
            let mut status =
                status::read(facts.config.as_deref(), &facts.policy, facts.complaint.clone())?;
            status::add_report(&mut status, &facts.report);
            Ok::<_, crate::lock::Error>(status)
        });
        let failed = |why: String| Error::Failed(format!("the kernel cannot be read: {why}"));
        let status = read.await.map_err(|it| failed(it.to_string()))?;
        let status = Arc::new(status.map_err(|it| failed(it.to_string()))?);
        *last = Some((begun, status.clone()));
        Ok(status)
    }
}
