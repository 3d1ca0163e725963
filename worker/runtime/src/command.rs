//! Docker's rules for what a container runs: the image's entrypoint and command, and what the service says instead.

/// What an image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageCommand<'a> {
    pub entrypoint: &'a [String],
    pub cmd: &'a [String],
}

/// Program and arguments. An entrypoint of the service drops the image's command too; arguments of the service replace
/// the image's command. `None`: neither names a program.
pub fn resolve_command(image: &ImageCommand<'_>, entrypoint: &[String], args: &[String]) -> Option<Vec<String>> {
    let (head, tail) = match (entrypoint.is_empty(), args.is_empty()) {
        (false, _) => (entrypoint, args),
        (true, false) => (image.entrypoint, args),
        (true, true) => (image.entrypoint, image.cmd),
    };
    let command = [head, tail].concat();
    (!command.is_empty()).then_some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn dockers_table_of_entrypoint_and_cmd() {
        let cases = [
            ("", "sh", "", "", Some("sh")),
            ("/entry", "a b", "", "", Some("/entry a b")),
            ("/entry", "a b", "", "c", Some("/entry c")),
            ("/entry", "a b", "/mine", "", Some("/mine")),
            ("/entry", "a b", "/mine", "c", Some("/mine c")),
            ("", "", "", "", None),
        ];
        for (image_entrypoint, cmd, entrypoint, args, expected) in cases {
            let (image_entrypoint, cmd) = (words(image_entrypoint), words(cmd));
            let image = ImageCommand { entrypoint: &image_entrypoint, cmd: &cmd };
            assert_eq!(resolve_command(&image, &words(entrypoint), &words(args)), expected.map(words));
        }
    }
}
