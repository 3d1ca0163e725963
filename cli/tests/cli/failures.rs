//! Exit codes, and what is said with them.

use std::path::Path;

use crate::fake::{Fake, Script};
use crate::run::skep;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon() {
    let nowhere = Path::new("/nonexistent/skep.sock");
    let run = skep(nowhere, &["node", "ls"]).await;
    assert_eq!(run.code, Some(69));
    assert_eq!(
        run.err,
        "error: cannot connect to the skep daemon at unix:///nonexistent/skep.sock: is it running? start it with `skep \
         daemon`\n"
    );
    let run = skep(nowhere, &["version"]).await;
    assert_eq!(run.code, Some(69));
    assert!(run.out.contains(env!("CARGO_PKG_VERSION")), "{}", run.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_knows_no_services() {
    let fake = Fake::worker(Script::default());
    for args in [&["service", "ls"][..], &["service", "create", "nginx"], &["swarm", "join-token", "worker"]] {
        let run = skep(fake.socket(), args).await;
        assert_eq!(run.code, Some(1), "{args:?}");
        assert!(run.err.contains("this node is not a swarm manager"), "{}", run.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_need_no_daemon() {
    let nowhere = Path::new("/nonexistent/skep.sock");
    for (args, code, text) in [
        (&["service", "create"][..], 64, "required"),
        (&["service", "create", "--bogus", "nginx"], 64, "--bogus"),
        (&["service", "create", "--replicas", "-1", "nginx"], 64, "must not be negative"),
        (&["service", "create", "--replicas", "99999999", "nginx"], 64, "replicas"),
        (&["service", "create", "--name", "a b", "nginx"], 64, "name"),
        (&["service", "create", "--limit-memory", "lots", "nginx"], 64, "--limit-memory"),
        (&["service", "create", "--constraint", "x=y", "nginx"], 64, "constraint"),
        (&["service", "create", "--credential-spec", "x", "nginx"], 78, "not supported yet: --credential-spec"),
        (&["service", "create", "--hostname", "{{.Bogus}}", "nginx"], 64, "hostname: \".Bogus\" is not a placeholder"),
        (&["service", "create", "--env", "A={{.Service.Labels.x}}", "nginx"], 78, "not supported yet: "),
        (&["service", "create", "--no-healthcheck", "--health-retries", "1", "nginx"], 64, "conflicts with"),
        (&["service", "create", "--health-timeout", "-1s", "nginx"], 64, "negative"),
        (&["service", "create", "--mode", "replicated-job", "nginx"], 78, "--mode replicated-job"),
        (&["service", "create", "--publish", "80-81:80", "nginx"], 78, "not supported yet: --publish 80-81"),
        (&["service", "create", "--network", "bridge", "--network", "x", "nginx"], 64, "--network"),
        (&["service", "create", "--endpoint-mode", "dnsrr", "-p", "80", "nginx"], 64, "endpoint.ports[0].mode"),
        (&["network", "create"], 64, "required"),
        (&["network", "create", "host"], 64, "predefined"),
        (&["network", "create", "--gateway", "10.9.0.1", "x"], 64, "must have a corresponding subnet"),
        (&["network", "create", "--scope", "swarm", "x"], 78, "not supported yet: --scope"),
        (&["network", "ls", "--filter", "scope=x"], 64, "scope"),
        (&["network", "connect", "front", "web"], 78, "not supported yet: network connect"),
        (&["swarm", "init", "--default-addr-pool", "x"], 64, "address_pools"),
        (&["swarm", "init", "--force-new-cluster", "--data-path-port", "4790"], 64, "cannot be used with"),
        (&["service", "update", "--isolation", "x", "web"], 78, "not supported yet: --isolation"),
        (&["service", "update", "--env-add", "=x", "web"], 64, "--env-add"),
        (&["service", "update", "--rollback", "--force", "web"], 64, "may not be combined with --rollback"),
        (&["service", "rollback", "--to", "0", "web"], 64, "--to"),
        (&["node", "update", "--availability", "busy", "x"], 64, "--availability"),
        (&["node", "update", "--label-add", "=x", "x"], 64, "--label-add"),
        (&["swarm", "update"], 64, "nothing to change"),
        (&["swarm", "update", "--dispatcher-heartbeat", "5ms"], 64, "heartbeat_period_ms"),
        (&["swarm", "update", "--max-snapshots", "5"], 78, "not supported yet: --max-snapshots"),
        (&["swarm", "init", "--dispatcher-heartbeat", "2m"], 64, "heartbeat_period_ms"),
        (&["swarm", "init", "--task-history-limit", "100000"], 64, "task_history_limit"),
        (&["swarm", "init", "--force-new-cluster", "--availability", "drain"], 64, "cannot be used with"),
        (&["volume", "ls"], 78, "not supported yet: volume"),
        (&["node", "ls", "--filter", "bogus=1"], 64, "invalid filter 'bogus'"),
        (&["node", "ls", "--format", "{{.Hostname"], 64, "template"),
        (&["node", "inspect", "--format", "{{nope}}", "x"], 64, "not defined"),
        (&["-H", "tcp://host:1", "node", "ls"], 64, "skep context create"),
        (&["-H", "/x.sock", "--context", "x", "node", "ls"], 64, "two things"),
        (&["client", "create", "alice"], 64, "--role"),
        (&["client", "create", "--role", "king", "alice"], 64, "--role"),
        (&["daemon", "--group", "no-such-group"], 64, "there is no group"),
        (&["swarm", "join", "--token", "x", "host"], 64, "--token"),
        (&["service", "logs", "--tail", "x", "web"], 64, "--tail"),
        (&["image", "load", "-i", "/nonexistent/x.tar"], 1, "/nonexistent/x.tar"),
        (&["daemon", "--log-level", "skep=nonsense"], 64, "--log-level"),
        (&["frobnicate"], 64, "frobnicate"),
        (&[], 64, "Usage"),
    ] {
        let run = skep(nowhere, args).await;
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
        assert!(run.err.contains(text), "{args:?}: {}", run.err);
        assert_eq!(run.out, "", "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn help_is_an_answer() {
    let nowhere = Path::new("/nonexistent/skep.sock");
    for (args, text) in [
        (&["--help"][..], "Usage: skep"),
        (&["--version"], "skep 0."),
        (&["help", "exit-codes"], "130  interrupted"),
        (&["exit-codes"], "130  interrupted"),
        (&["service", "create", "--help"], "--stop-grace-period"),
        (&["completion", "bash"], "complete "),
        (&["completion", "zsh"], "#compdef skep"),
        (&["completion", "fish"], "complete -c skep"),
    ] {
        let run = skep(nowhere, args).await;
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{args:?}");
        assert!(run.out.contains(text), "{args:?}");
    }
}
