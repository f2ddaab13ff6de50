// Colours, sizes and type for Mantine, and where the choice of system, light or dark is kept.
import {
  createTheme,
  localStorageColorSchemeManager,
  type CSSVariablesResolver,
  type MantineColorsTuple,
} from "@mantine/core";

/** public/theme.js reads the same key before the first paint. */
const THEME_KEY = "sallyport-theme";
export const colorSchemeManager = localStorageColorSchemeManager({ key: THEME_KEY });

const iris: MantineColorsTuple = [
  "#eef0ff",
  "#dcdffb",
  "#b8bdf3",
  "#9199ec",
  "#707ae6",
  "#5a66e0",
  "#4450c9",
  "#3843ae",
  "#2d378f",
  "#222a70",
];
const gray: MantineColorsTuple = [
  "#f7f8fa",
  "#f0f2f5",
  "#e5e8ed",
  "#d5dae2",
  "#b9c0cc",
  "#8b94a3",
  "#667085",
  "#4a5364",
  "#2f3746",
  "#1a202c",
];
const red: MantineColorsTuple = [
  "#fdeeed",
  "#f9dad8",
  "#f1b3af",
  "#e98a84",
  "#e2665f",
  "#c93d37",
  "#c02f2a",
  "#a32621",
  "#84201c",
  "#5b1714",
];
const dark: MantineColorsTuple = [
  "#d6dbe4",
  "#b7bfcc",
  "#98a2b3",
  "#6f7989",
  "#3a4352",
  "#2b323f",
  "#1c222c",
  "#14191f",
  "#0f1318",
  "#0a0d11",
];

export const theme = createTheme({
  primaryColor: "iris",
  primaryShade: { light: 6, dark: 5 },
  colors: { iris, gray, red, dark },
  defaultRadius: 6,
  cursorType: "pointer",
  focusRing: "auto",
  respectReducedMotion: true,
  fontFamily:
    'Inter, "SF Pro Text", -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif',
  fontFamilyMonospace:
    '"SF Mono", SFMono-Regular, "JetBrains Mono", "Cascadia Mono", Consolas, "Liberation Mono", Menlo, monospace',
  fontSizes: { xs: "12px", sm: "13px", md: "14px", lg: "16px", xl: "20px" },
  lineHeights: { xs: "1.4", sm: "1.45", md: "1.5", lg: "1.5", xl: "1.4" },
  components: {
    Button: { defaultProps: { size: "xs" } },
    ActionIcon: { defaultProps: { variant: "subtle", color: "gray", size: 28 } },
    TextInput: { defaultProps: { size: "xs" } },
    PasswordInput: { defaultProps: { size: "sm" } },
    NumberInput: { defaultProps: { size: "xs" } },
    Select: { defaultProps: { size: "xs", comboboxProps: { shadow: "md" } } },
    Textarea: { defaultProps: { size: "xs" } },
    Switch: { defaultProps: { size: "sm" } },
    SegmentedControl: { defaultProps: { size: "xs" } },
    Tooltip: {
      defaultProps: { openDelay: 250, withArrow: false, offset: 6, events: { hover: true, focus: true, touch: false } },
    },
    Modal: {
      defaultProps: {
        centered: true,
        overlayProps: { backgroundOpacity: 0.45 },
        transitionProps: { duration: 120 },
        closeButtonProps: { "aria-label": "Close" },
      },
    },
    // Without the placeholder the first line has the focus: a menu may hold nothing that is not a line of it.
    Menu: { defaultProps: { shadow: "md", position: "bottom-end", withInitialFocusPlaceholder: false } },
  },
});

export const cssVariables: CSSVariablesResolver = () => ({
  variables: {},
  light: {
    "--mantine-color-body": "#ffffff",
    "--mantine-color-text": "#1a202c",
    "--mantine-color-dimmed": "#5b6475",
    "--mantine-color-placeholder": "#667081",
    "--mantine-color-default-border": "#d5dae2",
    "--mantine-color-error": "#c02f2a",
  },
  dark: {
    "--mantine-color-body": "#12161c",
    "--mantine-color-text": "#e3e7ee",
    "--mantine-color-dimmed": "#98a2b3",
    "--mantine-color-placeholder": "#8792a2",
    "--mantine-color-error": "#ff8a83",
    "--mantine-color-default-border": "#313947",
    "--mantine-color-default": "#1a2029",
    "--mantine-color-default-hover": "#222935",
  },
});
