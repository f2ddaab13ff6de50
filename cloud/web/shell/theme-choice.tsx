// System, light or dark; system follows the computer, also when it changes. As a control, and as lines of a menu.
import { Menu, SegmentedControl, useMantineColorScheme } from "@mantine/core";
import { IconCheck, IconDeviceDesktop, IconMoon, IconSun } from "@tabler/icons-react";

const CHOICES = [
  { value: "auto", word: "System", icon: IconDeviceDesktop },
  { value: "light", word: "Light", icon: IconSun },
  { value: "dark", word: "Dark", icon: IconMoon },
] as const;

export function ThemeChoice() {
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <SegmentedControl
      aria-label="Theme"
      fullWidth
      value={colorScheme}
      onChange={(value) => setColorScheme(value as (typeof CHOICES)[number]["value"])}
      data={CHOICES.map((choice) => ({
        value: choice.value,
        label: (
          <span className="row" style={{ gap: 5, justifyContent: "center" }}>
            <choice.icon size={14} stroke={1.8} aria-hidden />
            {choice.word}
          </span>
        ),
      }))}
    />
  );
}

export function ThemeItems() {
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return CHOICES.map((choice) => (
    <Menu.Item
      key={choice.value}
      closeMenuOnClick={false}
      leftSection={<choice.icon size={15} aria-hidden />}
      rightSection={choice.value === colorScheme && <IconCheck size={14} aria-hidden />}
      onClick={() => setColorScheme(choice.value)}
    >
      {choice.word}
      {choice.value === colorScheme && <span className="sr"> (chosen)</span>}
    </Menu.Item>
  ));
}
