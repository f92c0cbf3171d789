//! What can be said to the monitor, behind Ctrl-A m or on the control line, and the editing of a typed line.
//!
//! Key types: [`Command`], [`LineEditor`]. Pure; `fleet` carries commands out.

use arrayvec::ArrayString;
use core::fmt;

/// Longest line, in bytes.
const LONGEST: usize = 120;
/// What the monitor shows when it waits for a line.
pub const PROMPT: &str = "gearshift> ";

/// What the monitor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Nothing: an empty line.
    Nothing,
    /// What there is to ask for.
    Help,
    /// All machines and what they do.
    List,
    /// Starts the machine with this name.
    Start(&'a str),
    /// Cuts the power of the machine with this name.
    Stop(&'a str),
    /// Exits and times of all machines.
    Stats,
    /// The report that the machine with this name left when it was stopped.
    Report(&'a str),
    /// The last lines of the log.
    Log,
    /// How much memory is free, to the byte.
    Memory,
    /// Moves the serial line to the console of the machine with this name.
    Focus(&'a str),
    /// Ends all machines, and the host.
    Quit,
}

/// All commands as [`Command::Help`] shows them.
pub const HELP: &str = "\
list          all machines
start NAME    starts a machine
stop NAME     cuts a machine's power
focus NAME    shows a machine's console, as Ctrl-A and its number does
stats         exits and times of all machines
report NAME   what a machine left that was stopped
log           the last lines of the log
memory        free memory, to the byte
quit          ends all machines and the host
";

/// Why a line is no command; one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError<'a> {
    /// No such command.
    Unknown(&'a str),
    /// The command takes the name of a machine.
    NoName(&'a str),
    /// More words than the command takes; the first of them.
    TooMuch(&'a str),
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown command '{word}'; 'help' lists what there is"),
            Self::NoName(word) => write!(f, "'{word}' takes the name of a machine; 'list' shows them"),
            Self::TooMuch(word) => write!(f, "'{word}' is too much"),
        }
    }
}

impl<'a> Command<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &'a str) -> Result<Self, CommandError<'a>> {
        let mut words = line.split_ascii_whitespace();
        let Some(verb) = words.next() else { return Ok(Self::Nothing) };
        let mut name = || words.next().ok_or(CommandError::NoName(verb));
        let command = match verb {
            "help" | "?" => Self::Help,
            "list" => Self::List,
            "start" => Self::Start(name()?),
            "stop" => Self::Stop(name()?),
            "focus" => Self::Focus(name()?),
            "stats" => Self::Stats,
            "report" => Self::Report(name()?),
            "log" => Self::Log,
            "memory" => Self::Memory,
            "quit" => Self::Quit,
            other => return Err(CommandError::Unknown(other)),
        };
        match words.next() {
            Some(word) => Err(CommandError::TooMuch(word)),
            None => Ok(command),
        }
    }
}

/// What a typed byte did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// It is part of the line: show it.
    Shown(u8),
    /// The last character is gone: rub it out.
    RubbedOut,
    /// The line is complete.
    Complete,
    /// The line was given up.
    GivenUp,
    /// Nothing.
    Nothing,
}

/// A line being typed.
#[derive(Debug, Default)]
pub struct LineEditor {
    line: ArrayString<LONGEST>,
    /// The last byte ended a line; a line feed behind it means nothing.
    after_return: bool,
}

impl LineEditor {
    /// Takes a byte from the keyboard.
    pub fn feed(&mut self, byte: u8) -> Typed {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' if after_return => Typed::Nothing,
            b'\r' | b'\n' => Typed::Complete,
            // Backspace, and what most terminals send instead.
            0x08 | 0x7f => self.line.pop().map_or(Typed::Nothing, |_| Typed::RubbedOut),
            // Ctrl-C, Ctrl-U.
            0x03 | 0x15 => {
                self.line.clear();
                Typed::GivenUp
            }
            b' '..=b'~' => match self.line.try_push(char::from(byte)) {
                Ok(()) => Typed::Shown(byte),
                Err(_) => Typed::Nothing,
            },
            _ => Typed::Nothing,
        }
    }

    /// Takes the complete line.
    pub fn take(&mut self) -> ArrayString<LONGEST> {
        core::mem::take(&mut self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        for (line, wanted) in [
            ("", Command::Nothing),
            ("  ", Command::Nothing),
            (" list ", Command::List),
            ("start web", Command::Start("web")),
            ("stop  web\r", Command::Stop("web")),
            ("focus a", Command::Focus("a")),
            ("report a", Command::Report("a")),
            ("quit", Command::Quit),
            ("?", Command::Help),
        ] {
            assert_eq!(Command::parse(line), Ok(wanted), "{line}");
        }
        assert_eq!(Command::parse("lst"), Err(CommandError::Unknown("lst")));
        assert_eq!(Command::parse("start"), Err(CommandError::NoName("start")));
        assert_eq!(Command::parse("quit now"), Err(CommandError::TooMuch("now")));
        assert_eq!(Command::parse("stop a b"), Err(CommandError::TooMuch("b")));
    }

    #[test]
    fn every_command_is_in_the_help() {
        for line in HELP.lines() {
            let words = line.split("  ").next().unwrap().replace("NAME", "x");
            assert!(Command::parse(&words).is_ok(), "{words}");
        }
    }

    #[test]
    fn a_line_can_be_corrected() {
        let mut editor = LineEditor::default();
        let typed: Vec<_> = b"lo\x7f\x08\x08list\x1b\r\n".iter().map(|&byte| editor.feed(byte)).collect();
        let shown = Typed::Shown;
        assert_eq!(typed[..5], [shown(b'l'), shown(b'o'), Typed::RubbedOut, Typed::RubbedOut, Typed::Nothing]);
        assert_eq!(typed[9..], [Typed::Nothing, Typed::Complete, Typed::Nothing]);
        assert_eq!(&*editor.take(), "list");
        b"abc".iter().for_each(|&byte| {
            editor.feed(byte);
        });
        assert_eq!(editor.feed(3), Typed::GivenUp);
        assert_eq!(editor.feed(b'\n'), Typed::Complete);
        assert_eq!(&*editor.take(), "");
    }

    #[test]
    fn a_line_has_an_end() {
        let mut editor = LineEditor::default();
        assert!((0..LONGEST).all(|_| editor.feed(b'x') == Typed::Shown(b'x')));
        assert_eq!(editor.feed(b'x'), Typed::Nothing);
        assert_eq!(editor.take().len(), LONGEST);
    }
}
