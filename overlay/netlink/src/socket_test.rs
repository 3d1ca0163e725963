//! Answers of the kernel are attributed to the messages they belong to; strange ones are refused.
#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

/// An answer as the kernel writes it: the error number, what it answers, attributes.
fn answer(flags: u16, code: i32, original: &[u8], text: Option<&str>) -> Vec<u8> {
    let mut payload = code.to_ne_bytes().to_vec();
    payload.extend_from_slice(original);
    let mut batch = Batch::new();
    batch.message(NLMSG_ERROR, flags, |message| {
        message.raw(&payload);
        if let Some(text) = text {
            message.string(NLMSGERR_ATTR_MSG, text);
        }
    });
    batch.bytes().to_vec()
}

fn read(bytes: &[u8]) -> Result<(Option<Errno>, Option<String>), Malformed> {
    verdict(Messages(bytes).next().unwrap().unwrap())
}

#[test]
fn acknowledgements() {
    let mut original = Batch::new();
    original.message(16, 0, |message| message.raw(&[1; 24]));
    let (header, whole) = (&original.bytes()[..16], original.bytes());
    assert_eq!(read(&answer(NLM_F_CAPPED, 0, header, None)), Ok((None, None)));
    assert_eq!(read(&answer(NLM_F_CAPPED, -17, header, None)), Ok((Some(Errno::EEXIST), None)));
    let text = Some("VNI in use".to_owned());
    let capped = answer(NLM_F_CAPPED | NLM_F_ACK_TLVS, -17, header, text.as_deref());
    assert_eq!(read(&capped), Ok((Some(Errno::EEXIST), text.clone())));
    let uncapped = answer(NLM_F_ACK_TLVS, -17, whole, text.as_deref());
    assert_eq!(read(&uncapped), Ok((Some(Errno::EEXIST), text)));
    assert!(read(&answer(NLM_F_ACK_TLVS, i32::MIN, whole, None)).is_err());
    assert!(read(&answer(NLM_F_ACK_TLVS, -1, &[0xff; 16], None)).is_err());
}

#[test]
fn words_are_part_of_the_error() {
    let refusal = Refusal { index: Some(0), errno: Errno::EEXIST, text: Some("VNI in use".to_owned()) };
    let error = refusal.into_error("add vxlan device vx0");
    assert_eq!(error.to_string(), "cannot add vxlan device vx0: File exists (VNI in use)");
    assert!(error.is_present() && !error.is_absent());
}

proptest! {
    #[test]
    fn no_panic(flags: u16, payload in prop::collection::vec(any::<u8>(), 0..64), kind in 2u16..4) {
        let _ = verdict(Message { kind, flags, sequence: 1, payload: &payload });
        let mut negative = (-5i32).to_ne_bytes().to_vec();
        negative.extend_from_slice(&payload);
        let _ = verdict(Message { kind, flags, sequence: 1, payload: &negative });
    }
}
