//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use skep_proto::v1::NetworkMode;

use crate::client::Host;
use crate::output::format::Format;
use crate::parse::{
    boolean, driver_opt, duration, env, file, filter, log_opt, mount, network, pair, platform, publish, security_opt,
    shell, since, size, ulimit,
};
use crate::registry;
use crate::remote::{bundle, hosts, store};

/// A value of a flag, given to the parser of every flag that takes one.
pub fn value(text: &str, now_ns: i64) {
    let list = [text.to_owned()];
    let _ = duration::parse(text).map(|span| (duration::millis(span), duration::millis_or_none(span)));
    let _ = size::bytes(text);
    let _ = size::nano_cpus(text);
    let _ = mount::parse(text);
    let _ = (file::secret(text), file::config(text));
    let _ = text.parse::<Host>().map(|host| host.to_string());
    let _ = publish::parse(text, NetworkMode::Host);
    let _ = publish::parse(text, NetworkMode::Default);
    let _ = network::Networks::parse(&list);
    let _ = driver_opt::options(&list);
    let _ = ulimit::parse(text);
    let _ = pair::labels(&list);
    let _ = pair::sysctls(&list);
    let _ = pair::host(text);
    let _ = env::variable(text, |_| None);
    let _ = env::file(text, |_| Some(String::new()));
    let _ = shell::words(text);
    let _ = since::parse_ns(text, now_ns);
    let _ = since::tail(text);
    let _ = platform::parse(text);
    let _ = log_opt::options(&list);
    let _ = log_opt::driver(text);
    let _ = filter::Filters::parse(&list, &["name"], &[]);
    let _ = security_opt::parse(text);
    let _ = security_opt::profile(text);
    let _ = boolean(text);
}

/// `--format`: reads a template and fills it in. Gives what is printed, or the refusal.
pub fn format(text: &str, data: &serde_json::Value) -> Result<String, String> {
    match Format::from_flags(Some(text), false).map_err(|failure| failure.to_string())? {
        Format::Template(template) | Format::Table(Some(template)) => {
            template.render(data).map_err(|error| error.to_string())
        }
        Format::Table(None) | Format::Json | Format::Quiet => Ok(String::new()),
    }
}

/// `~/.docker/config.json`, asked for the credential of an image's registry. Whether there is one.
pub fn docker_config(json: &[u8], image: &str) -> bool {
    registry::from_config(json, image, "config.json".as_ref()).is_ok_and(|found| found.is_some())
}

/// Managers' addresses, as `skep context create` takes them.
pub fn hosts(text: &str) -> Option<Vec<String>> {
    hosts::parse(text).ok()
}

/// As they are shown.
pub fn show_hosts(list: &[String]) -> String {
    hosts::show(list)
}

/// A client's file, which a context is too. Gives what is written of it, and its addresses.
pub fn bundle(text: &str) -> Option<(String, Vec<String>)> {
    let (bundle, _credentials) = bundle::parse(text).ok()?;
    Some((bundle.to_text(), bundle.hosts))
}

/// Whether a context may be called so; its name is a file's.
pub fn context_name(text: &str) -> bool {
    store::check_name(text).is_ok()
}
