//! Frames for tests: sound TCP and UDP frames over IPv4 and IPv6, checksums computed apart from the code under test.

use proptest::prelude::*;

/// What a frame is to be.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    pub(crate) source_port: u16,
    pub(crate) sequence: u32,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    /// TCP flags.
    pub(crate) flags: u8,
    /// Bytes of TCP options, a multiple of four.
    pub(crate) options: usize,
    pub(crate) payload: Vec<u8>,
}

impl Default for Sample {
    fn default() -> Self {
        Sample {
            v6: false,
            tcp: true,
            source_port: 40_000,
            sequence: 1,
            id: 1,
            dont_fragment: true,
            flags: 0x10,
            options: 0,
            payload: vec![],
        }
    }
}

/// Any of them.
pub(crate) fn sample() -> impl Strategy<Value = Sample> {
    let numbers =
        (any::<u16>(), any::<u32>(), any::<u16>(), prop::sample::select(vec![0x10u8, 0x18, 0x11, 0x90, 0x50]));
    (any::<[bool; 3]>(), numbers, 0usize..=10, prop::collection::vec(any::<u8>(), 1..9000)).prop_map(
        |([v6, tcp, dont_fragment], (source_port, sequence, id, flags), options, payload)| Sample {
            v6,
            tcp,
            source_port,
            sequence,
            id,
            dont_fragment,
            flags,
            options: options * 4,
            payload,
        },
    )
}

/// RFC 1071, word by word.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over pseudo-header and transport of a frame: 0xffff where its checksum is right.
pub(crate) fn transport_sum(frame: &[u8], v6: bool) -> u16 {
    let (addresses, start) = if v6 { (&frame[22..54], 54) } else { (&frame[26..34], 34) };
    let protocol = if v6 { frame[20] } else { frame[23] };
    let length = (frame.len() - start) as u16;
    sum(&[addresses, &[0, protocol], &length.to_be_bytes(), &frame[start..]])
}

impl Sample {
    fn transport(&self) -> Vec<u8> {
        let mut out = vec![];
        out.extend(self.source_port.to_be_bytes());
        out.extend(5201u16.to_be_bytes());
        if self.tcp {
            out.extend(self.sequence.to_be_bytes());
            out.extend([0, 0, 0, 9]);
            out.extend([(((20 + self.options) / 4) << 4) as u8, self.flags, 1, 0, 0, 0, 0, 0]);
            out.extend(vec![1; self.options]);
        } else {
            out.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            out.extend([0, 0]);
        }
        out.extend(&self.payload);
        out
    }

    /// Where the checksum is in the transport header.
    pub(crate) fn checksum_field(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    pub(crate) fn headers(&self) -> usize {
        let ip = if self.v6 { 54 } else { 34 };
        ip + if self.tcp { 20 + self.options } else { 8 }
    }

    /// The whole frame with right checksums.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let protocol = if self.tcp { 6 } else { 17 };
        let (ip, addresses): (Vec<u8>, Vec<u8>) = if self.v6 {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend((transport.len() as u16).to_be_bytes());
            ip.extend([protocol, 64]);
            let addresses: Vec<u8> = (0..32).collect();
            ip.extend(&addresses);
            (ip, addresses)
        } else {
            let mut ip = vec![0x45, 0];
            ip.extend(((20 + transport.len()) as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, 64, protocol, 0, 0]);
            let addresses = vec![10, 0, 0, 1, 10, 0, 0, 2];
            ip.extend(&addresses);
            let checksum = !sum(&[&ip]);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            (ip, addresses)
        };
        let length = (transport.len() as u16).to_be_bytes();
        let checksum = match !sum(&[&addresses, &[0, protocol], &length, &transport]) {
            0 => 0xffff,
            sum => sum,
        };
        let field = self.checksum_field();
        transport[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(ip);
        frame.extend(transport);
        frame
    }
}
