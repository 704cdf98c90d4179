//! A server of ours, or one that looks at it, as a process that ends with its test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::command::shardlane;

/// Answers at `address`, `host:port`, until it is dropped.
pub(crate) struct Running {
    pub(crate) process: Child,
    pub(crate) address: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Running {
    /// One of our servers, which says where it answers.
    pub(crate) fn start(arguments: &[&str]) -> Running {
        let mut process = shardlane(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once(" on http://")?;
            Some(address.split(';').next()?.to_owned())
        });
        // Somebody must read, or the server waits.
        std::thread::spawn(move || lines.for_each(drop));
        Running {
            process,
            address: address.expect("the server says where it answers"),
        }
    }

    /// Posts the webhook of an order's event, and gives the status of the answer.
    pub(crate) fn post_order(&self, event: usize, user: &str, status: &str) -> u16 {
        let body = format!(
            r#"{{"provider_event_id":"e-{event}","order_id":"o-{event}","user_id":"{user}","status":"{status}",
            "created_at":"2026-11-01T10:00:00Z","updated_at":"2026-11-01T10:00:00Z","meta":{{}}}}"#
        );
        let sent = ureq::post(format!("http://{}/webhooks/payments/orders", self.address))
            .header("content-type", "application/json")
            .config()
            .http_status_as_error(false)
            .build()
            .send(body);
        sent.unwrap().status().as_u16()
    }
}
