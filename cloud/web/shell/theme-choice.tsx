// System, light or dark; system follows the computer, also when it changes.
import { SegmentedControl, useMantineColorScheme } from "@mantine/core";
import { IconDeviceDesktop, IconMoon, IconSun } from "@tabler/icons-react";

export function ThemeChoice() {
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  const icon = (Shape: typeof IconSun, word: string) => (
    <span className="row" style={{ gap: 5, justifyContent: "center" }}>
      <Shape size={14} stroke={1.8} aria-hidden />
      {word}
    </span>
  );
  return (
    <SegmentedControl
      aria-label="Theme"
      fullWidth
      value={colorScheme}
      onChange={(value) => setColorScheme(value as "auto" | "light" | "dark")}
      data={[
        { value: "auto", label: icon(IconDeviceDesktop, "System") },
        { value: "light", label: icon(IconSun, "Light") },
        { value: "dark", label: icon(IconMoon, "Dark") },
      ]}
    />
  );
}
