//! One keep-alive connection, which is opened anew when it breaks.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use shardlane_domain::SigningKey;
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use super::arrivals::Arrival;
use super::target::Target;

/// Answers of the front door are a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const CONNECT_MAX: Duration = Duration::from_secs(5);

type Client = SendRequest<Full<Bytes>>;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// None in time, counted from the scheduled time.
    Timeout,
    /// No connection.
    Connect,
    /// The connection ended before the answer did, or what came is no HTTP.
    Broken,
}

impl Failure {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Connect => "connect",
            Failure::Broken => "broken",
        }
    }
}

pub(crate) struct Connection(Option<Client>);

impl Connection {
    pub(crate) async fn open(target: &Target) -> anyhow::Result<Connection> {
        Ok(Connection(Some(connect(target).await?)))
    }

    /// Sends, and reads the answer to its end, at most until `patience` after the scheduled time.
    pub(crate) async fn send(
        &mut self,
        target: &Target,
        key: Option<&SigningKey>,
        arrival: Arrival,
        patience: Duration,
    ) -> Result<StatusCode, Failure> {
        let until = arrival.scheduled + patience;
        let request = request(target, key, arrival).ok_or(Failure::Broken)?;
        let answer = timeout_at(until.into(), self.exchange(target, request))
            .await
            .unwrap_or(Err(Failure::Timeout));
        if answer.is_err() {
            // An answer that is still to come must not be taken for the next request's.
            self.0 = None;
        }
        answer
    }

    async fn exchange(
        &mut self,
        target: &Target,
        request: Request<Full<Bytes>>,
    ) -> Result<StatusCode, Failure> {
        let mut request = request;
        loop {
            let mut client = match self.0.take() {
                Some(client) => client,
                None => connect(target).await.map_err(|_| Failure::Connect)?,
            };
            if client.ready().await.is_err() {
                // The server closed an idle connection.
                continue;
            }
            match client.try_send_request(request).await {
                Ok(answer) => {
                    let (head, body) = answer.into_parts();
                    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                    body.map_err(|_| Failure::Broken)?;
                    self.0 = Some(client);
                    return Ok(head.status);
                }
                // Likewise, and nothing of the request has left.
                Err(mut error) => request = error.take_message().ok_or(Failure::Broken)?,
            }
        }
    }
}

async fn connect(target: &Target) -> anyhow::Result<Client> {
    let stream = timeout(CONNECT_MAX, TcpStream::connect(target.address)).await??;
    stream.set_nodelay(true)?;
    let (client, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with its client, which also hears of its error.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

fn request(
    target: &Target,
    key: Option<&SigningKey>,
    arrival: Arrival,
) -> Option<Request<Full<Bytes>>> {
    let webhook = arrival.webhook;
    let mut request = Request::post(webhook.path)
        .header(HOST, &target.host)
        .header(CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        // A redelivery has the id of the first delivery.
        let id = format!("msg_{}_{}", webhook.user_id.simple(), webhook.event_id);
        let now = Timestamp::now().as_second().to_string();
        let signature = key.sign(&id, &now, &webhook.payload);
        request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", signature);
    }
    request.body(Full::new(webhook.payload)).ok()
}

/// Since when `at` is past, in whole microseconds.
pub(crate) fn micros_since(at: Instant) -> u64 {
    u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX)
}
