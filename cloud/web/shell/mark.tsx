// The product's mark: a gate with one opening, and a key hole in it.

export function Mark({ size = 22 }: { size?: number }) {
  return (
    <svg width={size} height={size} viewBox="0 0 32 32" aria-hidden>
      <rect width="32" height="32" rx="8" fill="#4450c9" />
      <path d="M8 25V14.5a8 8 0 0 1 16 0V25h-4.4V14.8a3.6 3.6 0 0 0-7.2 0V25z" fill="#fff" />
      <circle cx="16" cy="20.5" r="2.2" fill="#fff" />
    </svg>
  );
}
