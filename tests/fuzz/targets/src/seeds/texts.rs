//! What is text: values of flags, names, files of the host, headers and answers of registries.

use super::{Add, parts};

/// By target.
const TEXTS: &[(&str, &[&str])] = &[
    (
        "constraint",
        &[
            "node.labels.disk==ssd",
            "node.role != manager",
            "node.platform.os==linux",
            "spread=node.labels.zone",
            "node.ip==10.0.0.0/8",
        ],
    ),
    (
        "placeholders",
        &[
            "{{.Service.Name}}-{{ .Task.Slot }}",
            "{{index .Service.Labels \"a.b\"}}",
            "{{.Node.Platform.OS}} {{",
            "{{ env \"A\" }}\n{{secret `db`}}{{config \"/etc/web.conf\"}}",
        ],
    ),
    ("addresses", &["10.1.0.0/16 10.1.2.0/24", "fd00::/64 fd00::/8", "0.0.0.0/0 255.255.255.255/32"]),
    ("identifiers", &["q8xnzk5r2v7c1m4t9w3e6y0a7", "SIGRTMIN+3", "CAP_NET_ADMIN", "0123456789abcdef"]),
    ("cli_values", FLAGS),
    (
        "host_files",
        &[
            "\0search a b\nnameserver 127.0.0.53\nnameserver\t::1 # local\nnameserver fe80::1%7\n",
            "\x0136 35 98:0 / /sys/fs/cgroup\\040x rw shared:1 - cgroup2 cgroup2 rw\n37 35 0:5 / /c rw - cgroup cgroup rw,memory\n",
            "\x02# mine\nskep:100000:65536\nother:1:2\n0:400000:10\nskep:500000:1\nbad:line\n",
        ],
    ),
    ("container_log", &["\x05one line\nand \"another\"\tno end", "\x01\u{e9}\u{20ac}\u{1f600}\r\n\n"]),
    (
        "image_reference",
        &[
            "busybox",
            "docker.io/library/redis:7",
            "registry.example:5000/a/b_c/d.e@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "[::1]:5000/x:tag",
            "localhost/x",
        ],
    ),
    (
        "image_change",
        &[
            "CMD [\"/bin/sh\"]\nENTRYPOINT sh -c x\nENV A=1 B=\"two words\"\nENV a b\nLABEL a=b\nUSER 1:2",
            "EXPOSE 80 53/udp 8000-8002/tcp\nWORKDIR /a\nWORKDIR b\nVOLUME [\"/x\"]\nSTOPSIGNAL SIGTERM",
            "HEALTHCHECK --interval=5s --retries=3 CMD curl -f x\nHEALTHCHECK NONE\nONBUILD RUN x",
        ],
    ),
    (
        "registry_answer",
        &[
            "Bearer realm=\"https://auth.example/token\",service=\"registry\",scope=\"repository:a/b:pull\"",
            "Basic realm=\"x\", Bearer realm=\"https://a\\\"b\"",
            "bytes 100-199/200",
            "{\"token\":\"abc\"}",
            "{\"access_token\":\"x\",\"expires_in\":300}",
            "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no\"}]}",
        ],
    ),
    (
        "registry_login",
        &[
            "{\"auths\":{\"registry.example\":{\"auth\":\"dTpw\"},\"https://index.docker.io/v1/\":{\"username\":\"u\",\"password\":\"p\"}}}",
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ==",
            "{\"identitytoken\":\"t\"}",
        ],
    ),
    ("unlock_key", &["SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", " SWMKEY-1-AAAA\n"]),
    (
        "swarm_record",
        &[
            "{\"listen_addr\":\"0.0.0.0:2377\",\"advertise_addr\":\"10.0.0.1:2377\",\"managers\":[]}",
            "{\"listen_addr\":\"[::]:2377\",\"advertise_addr\":\"[fd00::1]:2377\",\"managers\":[\"a:1\",\"b:1\"],\"seat\":{\"raft_id\":7,\"phase\":\"entered\"},\"removed\":false}",
            "[fd00::1]:2377",
            "10.0.0.1",
        ],
    ),
    (
        "seccomp_profile",
        &[
            "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":38,\"archMap\":[{\"architecture\":\"SCMP_ARCH_X86_64\",\"subArchitectures\":[\"SCMP_ARCH_X86\"]}],\"syscalls\":[{\"names\":[\"read\",\"write\",\"exit_group\"],\"action\":\"SCMP_ACT_ALLOW\"},{\"names\":[\"mount\"],\"action\":\"SCMP_ACT_ALLOW\",\"includes\":{\"caps\":[\"CAP_SYS_ADMIN\"],\"minKernel\":\"4.8\"},\"excludes\":{\"arches\":[\"s390x\"]}}]}",
            "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"architectures\":[\"SCMP_ARCH_X86_64\"],\"syscalls\":[{\"name\":\"clone\",\"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":1,\"args\":[{\"index\":0,\"value\":2114060288,\"valueTwo\":0,\"op\":\"SCMP_CMP_MASKED_EQ\"},{\"index\":0,\"value\":8,\"op\":\"SCMP_CMP_GE\"}]}]}",
        ],
    ),
];

const FLAGS: &[&str] = &[
    "type=bind,source=/a,target=/b,readonly",
    "published=80,target=8080,mode=host,protocol=udp",
    "80:8080/tcp",
    "name=front,alias=web,ip=10.1.0.7",
    "nofile=1024:2048",
    "1h30m5s",
    "1.5g",
    "max-size=10m",
    "KEY=value",
    "2026-01-02T03:04:05Z",
    "linux/arm64/v8",
    "label=a=b",
    "host:192.0.2.1",
    "sh -c 'a \"b\" \\c'",
    "net.ipv4.ip_forward=1",
    "[\"a\",\"b\"]",
    "source=db@2,target=/etc/db,uid=33,gid=34,mode=0440",
    "unix:///run/skep/skep.sock",
];

/// With an image's name before them.
const DOCKER_CONFIGS: &[&str] = &[
    "{\"auths\":{\"registry.example\":{\"auth\":\"dTpw\"}},\"credHelpers\":{\"x.example\":\"y\"}}",
    "{\"auths\":{\"https://registry.example/v1/\":{\"identitytoken\":\"t\"}},\"credsStore\":\"z\"}",
];

/// With a value behind them.
const FORMATS: &[&str] = &[
    "{{.ID}}\t{{.Name}}",
    "table {{.Name}}\t{{json .Labels}}",
    "{{range .Ports}}{{.}},{{else}}-{{end}}",
    "{{if and .Name (eq .Replicas 3)}}{{upper .Name}}{{end}}",
    "{{with .Spec.Mode}}{{.Replicated.Replicas}}{{end}}{{index .Labels \"a.b\"}}",
];

pub(super) fn add(add: &mut Add<'_>) {
    for (target, texts) in TEXTS {
        add(target, texts.iter().map(|text| text.as_bytes().to_vec()).collect());
    }
    let configs = DOCKER_CONFIGS.iter().map(|text| parts(&[b"registry.example/a:1", text.as_bytes()]));
    add("docker_config", configs.collect());
    add("cli_format", FORMATS.iter().map(|text| parts(&[text.as_bytes(), b"web"])).collect());
}
