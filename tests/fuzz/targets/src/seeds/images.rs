//! Layers, manifests, configurations, and archives of all of it.

use std::io::Write as _;

use skep_image::Digest;

use super::Add;

pub(super) fn add(add: &mut Add<'_>) {
    let layer = layer();
    add("layer_tar", layers(&layer));
    let config = config(&layer);
    let manifest = manifest(&config, &layer);
    let index = index(&manifest);
    let records = format!(
        "{{\"format\":1,\"images\":[{{\"digest\":\"{0}\",\"manifest\":\"{0}\",\"config\":\"{0}\",\"platform\":{{\"os\":\"linux\",\"architecture\":\"amd64\"}},\"names\":[\"docker.io/library/web:1\"],\"layers\":[],\"held_since\":1,\"last_used\":1}}]}}",
        Digest::of(&manifest),
    );
    add("image_records", vec![records.into_bytes()]);
    add("image_config", vec![config.clone()]);
    add("image_manifest", vec![manifest.clone(), index.clone()]);
    let blob = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    let oci = archive_of(&[
        ("oci-layout".to_owned(), b"{\"imageLayoutVersion\":\"1.0.0\"}"),
        ("index.json".to_owned(), &index),
        (blob(&manifest), &manifest),
        (blob(&config), &config),
        (blob(&layer), &layer),
    ]);
    let list = b"[{\"Config\":\"config.json\",\"RepoTags\":[\"web:1\"],\"Layers\":[\"a/layer.tar\"]}]";
    let docker = archive_of(&[
        ("config.json".to_owned(), &config),
        ("a/layer.tar".to_owned(), &layer),
        ("manifest.json".to_owned(), list),
    ]);
    add("image_archive", vec![oci, docker]);
}

/// A layer in all ways that it may be packed, and with names that tar needs extensions for; paths that lead out.
fn layers(layer: &[u8]) -> Vec<Vec<u8>> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(layer).unwrap();
    let mut long = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    long.append_data(&mut header, "a/".repeat(80) + "file", &b"x"[..]).unwrap();
    let extended = b"30 mtime=1700000000.123456789\n25 SCHILY.xattr.user.a=b\n".to_vec();
    let mut pax = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(extended.len() as u64);
    pax.append_data(&mut header, "PaxHeaders/x", &extended[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    pax.append_data(&mut header, "x", &b"x"[..]).unwrap();
    vec![
        layer.to_vec(),
        packed.finish().unwrap(),
        zstd::encode_all(layer, 1).unwrap(),
        long.into_inner().unwrap(),
        pax.into_inner().unwrap(),
        traversal("../beside/file"),
        traversal("/etc/../../beside/file"),
        traversal("out/file"),
    ]
}

fn config(layer: &[u8]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!(
        "{{\"architecture\":\"{architecture}\",\"os\":\"linux\",\"config\":{{\"Cmd\":[\"/bin/sh\"],\"Env\":[\"A=b\"],\"Healthcheck\":{{\"Test\":[\"CMD\",\"x\"],\"Interval\":1000000000}}}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
        Digest::of(layer),
    )
    .into_bytes()
}

fn descriptor(kind: &str, content: &[u8]) -> String {
    format!(
        "{{\"mediaType\":\"application/vnd.oci.image.{kind}\",\"digest\":\"{}\",\"size\":{}}}",
        Digest::of(content),
        content.len()
    )
}

fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{},\"layers\":[{}]}}",
        descriptor("config.v1+json", config),
        descriptor("layer.v1.tar", layer),
    )
    .into_bytes()
}

fn index(manifest: &[u8]) -> Vec<u8> {
    let platform = ",\"platform\":{\"architecture\":\"amd64\",\"os\":\"linux\",\"variant\":\"v2\"},\"annotations\":{\"org.opencontainers.image.ref.name\":\"web:1\"}}";
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{}]}}",
        descriptor("manifest.v1+json", manifest).replace('}', platform),
    )
    .into_bytes()
}

/// A tar archive of one of everything that a layer may have.
fn layer() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        archive.append_data(&mut header, path, content).unwrap();
    };
    put("etc", tar::EntryType::Directory, "", b"");
    put("etc/passwd", tar::EntryType::Regular, "", b"root:x:0:0::/root:/bin/sh\n");
    put("etc/alias", tar::EntryType::Link, "etc/passwd", b"");
    put("out", tar::EntryType::Symlink, "../beside", b"");
    put("etc/.wh.gone", tar::EntryType::Regular, "", b"");
    put("etc/.wh..wh..opq", tar::EntryType::Regular, "", b"");
    put("run/pipe", tar::EntryType::Fifo, "", b"");
    archive.into_inner().unwrap()
}

/// A path that the tar crate would not write.
fn traversal(path: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(4);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(b"evil");
    bytes.resize(2048, 0);
    bytes
}

fn archive_of(list: &[(String, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in list {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *content).unwrap();
    }
    archive.into_inner().unwrap()
}
