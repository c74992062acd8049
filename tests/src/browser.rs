//! A real browser in a namespace: headless Chromium, driven through ChromeDriver.
//!
//! Both are Debian's; `.ci/packages --browser` installs them. They run in a PID namespace of their own,
//! so that all of them end with it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fantoccini::{Client, ClientBuilder, Locator, key::Key};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::netns::Netns;
use crate::process::Process;
use crate::wait::eventually;

const DRIVER: &str = "/usr/bin/chromedriver";
const PORT: u16 = 9515;
/// Without these Chromium tries to reach its makers.
const QUIET: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];

/// One window of a browser.
#[derive(Debug)]
pub struct Browser {
    netns: Netns,
    runtime: Runtime,
    client: Client,
    _driver: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser whose window has this many pixels.
    pub fn start(netns: &Netns, (width, height): (u32, u32)) -> Result<Self> {
        ensure!(
            Path::new(DRIVER).exists(),
            "{DRIVER} is missing; .ci/packages --browser installs it"
        );
        let profile = tempfile::tempdir()?;
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", DRIVER]);
        command.arg(format!("--port={PORT}")).env("TMPDIR", profile.path());
        let driver = Process::spawn(command, netns, None)?;
        let mut options: Vec<String> = QUIET.map(str::to_owned).to_vec();
        options.push(format!("--user-data-dir={}", profile.path().join("profile").display()));
        options.push(format!("--window-size={width},{height}"));
        let wanted = json!({ "goog:chromeOptions": { "args": options } });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connect = || -> Result<Client> {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            builder.capabilities(wanted.as_object().cloned().unwrap_or_default());
            let address = format!("http://127.0.0.1:{PORT}");
            netns.run(|| runtime.block_on(builder.connect(&address))).context("start Chromium")
        };
        let client = eventually("a browser", Duration::from_secs(30), connect)?;
        Ok(Self { netns: netns.clone(), runtime, client, _driver: driver, _profile: profile })
    }

    /// Goes to an address, and waits until it is loaded.
    pub fn open(&self, address: &str) -> Result<()> {
        self.wait_for(self.client.goto(address)).with_context(|| address.to_owned())
    }

    /// What a piece of JavaScript returns.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.wait_for(self.client.execute(script, Vec::new())).with_context(|| script.to_owned())
    }

    /// The address that the browser shows.
    pub fn address(&self) -> Result<String> {
        Ok(self.wait_for(self.client.current_url())?.to_string())
    }

    /// The visible text of the first element that a CSS selector finds.
    pub fn text(&self, selector: &str) -> Result<String> {
        let text = async { self.client.find(Locator::Css(selector)).await?.text().await };
        self.wait_for(text).with_context(|| selector.to_owned())
    }

    /// Presses keys wherever the focus is.
    pub fn press(&self, keys: &str) -> Result<()> {
        let press = async { self.client.active_element().await?.send_keys(keys).await };
        self.wait_for(press).with_context(|| format!("press {keys}"))
    }

    /// Presses Escape.
    pub fn escape(&self) -> Result<()> {
        self.press(&char::from(Key::Escape).to_string())
    }

    /// Pretends that the user prefers `dark` or `light`.
    pub fn prefer(&self, scheme: &str) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let body =
            json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.wait_for(self.client.issue_cmd(DevTools(body))).map(drop).context("prefer a scheme")
    }

    /// A picture of the window as it is, PNG.
    pub fn screenshot(&self) -> Result<Vec<u8>> {
        self.wait_for(self.client.screenshot()).context("a screenshot")
    }

    fn wait_for<T, E, F>(&self, work: F) -> Result<T>
    where
        T: Send,
        E: Into<anyhow::Error> + Send,
        F: Future<Output = Result<T, E>> + Send,
    {
        self.netns.run(|| self.runtime.block_on(work)).map_err(Into::into)
    }
}

/// A command of the browser's own protocol, which WebDriver has no word for.
#[derive(Debug)]
struct DevTools(Value);

impl fantoccini::wd::WebDriverCompatibleCommand for DevTools {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.0.to_string()))
    }
}
